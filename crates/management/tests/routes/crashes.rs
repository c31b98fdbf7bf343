//! Management dies, between what it journals and what it stores, and after: the schedule goes on as if it had not.

use std::time::Duration;

use access::vocabulary::RevocationKind;
use audit::record::Record;
use identity::PeerClass;
use management::schedule::ScheduledTask;
use testkit::denials::peer_of;
use testkit::house::House;
use wire::api::TaskEnd;
use wire::tls::Peer;

use crate::world::World;

const DAYS: &[&str] = &["2005-03-16", "2005-03-17"];

/// What the schedule and the guards go by.
fn where_it_stands(world: &World) -> (usize, bool, Vec<ScheduledTask>, Vec<(RevocationKind, String)>) {
    let state = world.control.state();
    let entries = state.revocations.entries().iter();
    (
        state.schedule.step(),
        state.ended,
        state.schedule.tasks().cloned().collect(),
        entries.map(|entry| (entry.kind, entry.id.clone())).collect(),
    )
}

async fn next(world: &World, askers: &[Peer]) -> Option<(Peer, TaskEnd)> {
    for asker in askers.iter().cycle().take(2 * askers.len()) {
        // A task that failed is to be had again after a pause.
        let reply = world.control.take_task(asker, Duration::from_millis(100)).await.unwrap();
        if let Some(task) = reply.task {
            // The first attempt at each step's first task fails: it goes back to the queue, and its grants die.
            let done = !(task.kind == "collect" && task.attempt == 1);
            let end = TaskEnd { task: task.id, attempt: task.attempt, done, detail: serde_json::json!({}) };
            return Some((asker.clone(), end));
        }
    }
    None
}

#[tokio::test]
async fn a_management_that_dies_while_a_task_ends_goes_on_as_if_it_had_not() {
    let world = World::with_steps(DAYS);
    let house = House::new();
    let askers = [peer_of(&house, PeerClass::Agents).await, peer_of(&house, PeerClass::Desk).await];
    for asker in &askers {
        world.enrol(&asker.id, asker.epoch, asker.key);
    }
    let mut ended = 0;
    while let Some((holder, end)) = next(&world, &askers).await {
        let before = world.image();
        world.control.end_task(&holder, &end).unwrap();
        let after = world.image();
        let undisturbed = where_it_stands(&world);

        // Journalled, not stored: the holder had no answer, and says it again.
        let again = World::restarted(&after, &before, DAYS);
        assert_ne!(where_it_stands(&again), undisturbed, "{} was stored before it ended", end.task);
        again.control.end_task(&holder, &end).unwrap();
        assert_eq!(where_it_stands(&again), undisturbed, "{} ended twice", end.task);

        // Stored, not answered: what the holder says again is refused, and changes nothing.
        let again = World::restarted(&after, &after, DAYS);
        assert_eq!(where_it_stands(&again), undisturbed, "{} ended once", end.task);
        assert!(again.control.end_task(&holder, &end).is_err());
        assert_eq!(where_it_stands(&again), undisturbed, "{} ended once, said twice", end.task);
        ended += 1;
    }
    assert_eq!(ended, 12, "five tasks a step, and one failed attempt at each step's first");
    let (step, over, ..) = where_it_stands(&world);
    assert_eq!((step, over), (2, true));
    assert!(matches!(world.records().last(), Some(Record::RunEnded { .. })));
}

#[tokio::test]
async fn who_was_asked_for_new_keys_is_still_asked_after_a_restart() {
    let world = World::with_steps(DAYS);
    let asked = peer_of(&House::new(), PeerClass::Agents).await;
    world.enrol(&asked.id, asked.epoch, asked.key);
    assert_eq!(world.control.ask_for_rotation(None, "owner").unwrap(), 1);
    let image = world.image();
    let again = World::restarted(&image, &image, DAYS);
    let before = world.control.state().renew_before.clone();
    assert_eq!(again.control.state().renew_before, before);
    assert!(before.contains_key(&asked.id));
}
