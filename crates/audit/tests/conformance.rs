//! Our log against other people's: proofs of transparency-dev/merkle, and a log written and signed by
//! Tessera.
//!
//! The figures are not part of this repository; without them each test says so and passes.

#[cfg(test)]
mod conformance {
    use std::path::PathBuf;

    use audit::checkpoint::{Checkpoint, parse_verifier_text};
    use audit::merkle::{Tree, leaf_hash, verify_consistency, verify_inclusion};
    use audit::tiles;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use keys::Digest;
    use serde_json::Value;

    /// Tessera's published key for its test log.
    const TESSERA_KEY: &str =
        "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx";

    fn data(name: &str) -> Option<PathBuf> {
        let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data");
        let root =
            std::env::var_os("TRADER_SHARED_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
        let path = root.join("conformance").join(name);
        if !path.exists() {
            println!("skipped: {name} is not here; set TRADER_SHARED_DATA");
            return None;
        }
        Some(path)
    }

    /// Some cases carry a word where nothing depends on the hash; its digest stands in, since ours have one
    /// length.
    fn digest(value: &Value) -> Option<Digest> {
        let bytes = STANDARD.decode(value.as_str()?).ok().filter(|bytes| !bytes.is_empty())?;
        Some(bytes.as_slice().try_into().map_or_else(|_| Digest::of(&bytes), Digest))
    }

    /// Absent and `null` lists are empty ones, as in Go.
    fn digests(value: &Value) -> Option<Vec<Digest>> {
        value.as_array().map_or(Some(Vec::new()), |list| list.iter().map(digest).collect())
    }

    #[test]
    fn published_proofs_are_judged_as_published() {
        let Some(path) = data("merkle_rfc6962/proofs.jsonl") else { return };
        let (mut inclusion, mut consistency) = (0, 0);
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let proof = digests(&case["proof"]);
            let number = |name: &str| case[name].as_u64().unwrap();
            let verified = if case.get("treeSize").is_some() {
                inclusion += 1;
                match (digest(&case["leafHash"]), proof, digest(&case["root"])) {
                    (Some(leaf), Some(proof), Some(root)) => {
                        verify_inclusion(&leaf, number("leafIdx"), number("treeSize"), &proof, &root)
                    }
                    _ => false,
                }
            } else if case.get("size1").is_some() {
                consistency += 1;
                match (digest(&case["root1"]), proof, digest(&case["root2"])) {
                    (Some(old), Some(proof), Some(new)) => {
                        verify_consistency(number("size1"), &old, number("size2"), &new, &proof)
                    }
                    _ => false,
                }
            } else {
                continue;
            };
            assert_eq!(verified, !case["wantErr"].as_bool().unwrap(), "{line}");
        }
        assert!(inclusion > 40 && consistency > 40);
    }

    #[test]
    fn a_log_written_by_tessera_is_read_and_recomputed() {
        let Some(root) = data("tlog_tiles_tessera") else { return };
        let (origin, key) = parse_verifier_text(TESSERA_KEY).unwrap();
        let open = |name: &str| {
            let note = std::fs::read(root.join(name)).unwrap();
            Checkpoint::open(&note, &origin, &key).unwrap()
        };
        let newest = open("checkpoint");
        let mut tree = Tree::default();
        for file in tiles::files(newest.size) {
            let bytes = std::fs::read(root.join(file.path())).unwrap();
            match file.kind {
                tiles::Kind::Entries => {
                    let entries = tiles::decode_bundle(&bytes, file.width).unwrap();
                    assert_eq!(tiles::encode_bundle(entries.iter().copied()).unwrap(), bytes);
                    entries.iter().for_each(|entry| tree.push(leaf_hash(entry)));
                }
                tiles::Kind::Hashes { .. } => assert_eq!(file.hashes(&tree), Some(bytes)),
            }
        }
        assert_eq!(tree.root(), newest.root);
        for size in (0..=14).step_by(2) {
            let older = open(&format!("checkpoint.{size}"));
            assert_eq!((older.size, tree.root_at(size)), (size, Some(older.root)));
            let Some(proof) = tree.consistency(size, newest.size) else {
                assert_eq!(size, 0);
                continue;
            };
            assert!(verify_consistency(size, &older.root, newest.size, &newest.root, &proof));
        }
    }
}
