//! Which peers reach which routes: one table of routes for each domain and class of peers.
//!
//! INVARIANT: a class that is not named here has no listener, and a route that is not in its class's table is
//! not there.

use std::path::Path;
use std::sync::Arc;

use access::vocabulary::Audience;
use axum::Router;
use identity::PeerClass;
use store::{Ledger, Market, News, Research, StoreError};
use wire::guard::{GrantDoor, RouteInfo, Routes};
use wire::journal::Journal;

use crate::articles::{ReadArticles, WriteArticles};
use crate::bars::{ReadBars, ReadPanel, WriteBars};
use crate::books::{ReadEquity, ReadHoldings, WriteEntries};
use crate::research::{ReadForecast, WriteForecast, WriteReport};
use crate::shared::Shared;

/// The routes for one class of peers.
pub struct Listener {
    /// The only class that is let in.
    pub class: PeerClass,
    /// Its routes.
    pub table: Vec<RouteInfo>,
    /// The same, ready to serve.
    pub router: Router,
}

/// The name of a unit's process, in journals and directories.
#[must_use]
pub fn name_of(domain: Audience, number: u32) -> String {
    format!("unit-{domain}-{number}")
}

/// Opens a domain's database and builds its routes, all behind one door. The desk is no domain and has none.
///
/// # Errors
/// When the database cannot be opened.
pub fn listeners(
    domain: Audience,
    database: &Path,
    door: &Arc<GrantDoor>,
    journal: &Arc<Journal>,
) -> Result<Vec<Listener>, StoreError> {
    match domain {
        Audience::Market => {
            let shared = Shared::new(Market::open(database)?, door.clone(), journal.clone());
            let agents = routes(&shared).with::<ReadPanel>().with::<ReadBars>().with::<WriteBars>();
            let desk = routes(&shared).with::<ReadBars>();
            Ok(vec![listener(PeerClass::Agents, agents), listener(PeerClass::Desk, desk)])
        }
        Audience::News => {
            let shared = Shared::new(News::open(database)?, door.clone(), journal.clone());
            let agents = routes(&shared).with::<ReadArticles>().with::<WriteArticles>();
            Ok(vec![listener(PeerClass::Agents, agents)])
        }
        Audience::Research => {
            let shared = Shared::new(Research::open(database)?, door.clone(), journal.clone());
            let agents = routes(&shared).with::<ReadForecast>().with::<WriteForecast>().with::<WriteReport>();
            Ok(vec![listener(PeerClass::Agents, agents)])
        }
        Audience::Ledger => {
            let shared = Shared::new(Ledger::open(database)?, door.clone(), journal.clone());
            let agents = routes(&shared).with::<ReadHoldings>().with::<ReadEquity>();
            let desk = routes(&shared).with::<WriteEntries>();
            Ok(vec![listener(PeerClass::Agents, agents), listener(PeerClass::Desk, desk)])
        }
        Audience::Desk => Ok(Vec::new()),
    }
}

fn routes<D: Send + Sync + 'static>(shared: &Arc<Shared<D>>) -> Routes<Shared<D>> {
    Routes::new(shared.clone(), shared.door().clone(), shared.journal().clone())
}

fn listener<D: Send + Sync + 'static>(class: PeerClass, routes: Routes<Shared<D>>) -> Listener {
    Listener { class, table: routes.table().to_vec(), router: routes.into_router() }
}
