//! The Merkle tree of RFC 6962, in memory: roots, inclusion proofs, consistency proofs, and their
//! verification.
//!
//! Owns the hashing and the shape of the tree. It knows nothing of entries, files or signatures. The tree
//! keeps the hash of every complete subtree (64 bytes per leaf), so a root or a proof costs a logarithm of
//! steps, and a tile is a slice of one row.
//!
//! Source: RFC 6962 section 2.1 for the tree, RFC 9162 sections 2.1.3.2 and 2.1.4.2 for verification.

use keys::Digest;

/// The hash of a leaf: SHA-256 over a zero byte and the entry.
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Digest {
    Digest::of_parts(&[&[0], entry])
}

/// The hash of an inner node: SHA-256 over a one byte and the two children.
#[must_use]
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    Digest::of_parts(&[&[1], &left.0, &right.0])
}

/// The root of the tree with no leaves: SHA-256 of nothing.
#[must_use]
pub fn empty_root() -> Digest {
    Digest::of(&[])
}

/// A tree that grows at its end only.
///
/// ```
/// let mut tree = audit::merkle::Tree::default();
/// for entry in ["a", "b", "c"] {
///     tree.push(audit::merkle::leaf_hash(entry.as_bytes()));
/// }
/// let proof = tree.inclusion(1, 3).unwrap();
/// assert!(audit::merkle::verify_inclusion(&audit::merkle::leaf_hash(b"b"), 1, 3, &proof, &tree.root()));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// Row `k` holds the hashes of the complete subtrees of 2^k leaves, from the left.
    rows: Vec<Vec<Digest>>,
}

impl Tree {
    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.rows.first().map_or(0, |row| row.len() as u64)
    }

    /// Appends a leaf, given its hash.
    pub fn push(&mut self, leaf: Digest) {
        let mut hash = leaf;
        for level in 0.. {
            if self.rows.len() == level {
                self.rows.push(Vec::new());
            }
            let Some(row) = self.rows.get_mut(level) else { return };
            row.push(hash);
            match row.as_slice() {
                [.., left, right] if row.len().is_multiple_of(2) => hash = node_hash(left, right),
                _ => return,
            }
        }
    }

    /// Takes leaves away from the end until `size` are left; nothing when there are fewer.
    pub fn truncate(&mut self, size: u64) {
        for (level, row) in self.rows.iter_mut().enumerate() {
            row.truncate(usize::try_from(size >> level).unwrap_or(usize::MAX));
        }
    }

    /// The hash of the complete subtree number `index` of 2^`level` leaves; `None` when it is not complete.
    #[must_use]
    pub fn node(&self, level: u32, index: u64) -> Option<Digest> {
        self.rows.get(usize::try_from(level).ok()?)?.get(usize::try_from(index).ok()?).copied()
    }

    /// The hash of leaf `index`.
    #[must_use]
    pub fn leaf(&self, index: u64) -> Option<Digest> {
        self.node(0, index)
    }

    /// The root over all leaves.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.root_at(self.size()).unwrap_or_else(empty_root)
    }

    /// The root that the tree had with `size` leaves; `None` when it never had as many.
    #[must_use]
    pub fn root_at(&self, size: u64) -> Option<Digest> {
        if size == 0 { Some(empty_root()) } else { self.range(0, size) }
    }

    /// The hash over the leaves `from..to`, where `from` is a multiple of the power of two that covers the
    /// range.
    fn range(&self, from: u64, to: u64) -> Option<Digest> {
        let leaves = to.checked_sub(from).filter(|leaves| *leaves > 0)?;
        if leaves.is_power_of_two() {
            let level = leaves.trailing_zeros();
            return self.node(level, from >> level);
        }
        let middle = from + split(leaves);
        Some(node_hash(&self.range(from, middle)?, &self.range(middle, to)?))
    }

    /// The proof that leaf `index` is in the tree of `size` leaves; `None` when it is not.
    #[must_use]
    pub fn inclusion(&self, index: u64, size: u64) -> Option<Vec<Digest>> {
        if index >= size || size > self.size() {
            return None;
        }
        let (mut from, mut to, mut proof) = (0, size, Vec::new());
        while to - from > 1 {
            let middle = from + split(to - from);
            if index < middle {
                proof.push(self.range(middle, to)?);
                to = middle;
            } else {
                proof.push(self.range(from, middle)?);
                from = middle;
            }
        }
        proof.reverse();
        Some(proof)
    }

    /// The proof that the tree of `old` leaves is a prefix of the tree of `new` leaves; `None` when there is
    /// no such tree, or when `old` alone is 0: the empty tree is a prefix of all, and a proof of it would
    /// prove nothing.
    #[must_use]
    pub fn consistency(&self, old: u64, new: u64) -> Option<Vec<Digest>> {
        if old > new || new > self.size() {
            return None;
        }
        if old == new {
            return Some(Vec::new());
        }
        if old == 0 {
            return None;
        }
        let (mut from, mut to, mut proof, mut whole) = (0, new, Vec::new(), true);
        while old < to {
            let middle = from + split(to - from);
            if old <= middle {
                proof.push(self.range(middle, to)?);
                to = middle;
            } else {
                proof.push(self.range(from, middle)?);
                from = middle;
                whole = false;
            }
        }
        // The old root itself is known to the verifier; any other subtree at the end of the walk is not.
        if !whole {
            proof.push(self.range(from, to)?);
        }
        proof.reverse();
        Some(proof)
    }
}

/// The largest power of two smaller than `leaves`, which is at least 2.
fn split(leaves: u64) -> u64 {
    1 << (u64::BITS - 1 - (leaves - 1).leading_zeros())
}

/// Whether `proof` shows that the leaf with hash `leaf` stands at `index` in the tree of `size` leaves with
/// this `root`.
#[must_use]
pub fn verify_inclusion(leaf: &Digest, index: u64, size: u64, proof: &[Digest], root: &Digest) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// Whether `proof` shows that the tree of `old` leaves with root `old_root` is a prefix of the tree of `new`
/// leaves with root `new_root`. Nothing is shown about the empty tree but that it equals itself.
#[must_use]
pub fn verify_consistency(
    old: u64,
    old_root: &Digest,
    new: u64,
    new_root: &Digest,
    proof: &[Digest],
) -> bool {
    if old > new {
        return false;
    }
    if old == new {
        return proof.is_empty() && old_root == new_root && (old > 0 || *old_root == empty_root());
    }
    if old == 0 {
        return false;
    }
    // A tree whose size is a power of two is itself the first node of the path.
    let (first, rest) = match proof.split_first() {
        None => return false,
        Some(_) if old.is_power_of_two() => (*old_root, proof),
        Some((first, rest)) => (*first, rest),
    };
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut old_hash, mut new_hash) = (first, first);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && old_hash == *old_root && new_hash == *new_root
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree's definition, word for word (RFC 6962 section 2.1).
    fn root_by_definition(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => empty_root(),
            [leaf] => *leaf,
            leaves => {
                let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
                node_hash(&root_by_definition(left), &root_by_definition(right))
            }
        }
    }

    fn grown(size: u64) -> (Tree, Vec<Digest>) {
        let leaves: Vec<Digest> = (0..size).map(|n| leaf_hash(&n.to_be_bytes())).collect();
        let mut tree = Tree::default();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        (tree, leaves)
    }

    #[test]
    fn every_root_is_the_one_of_the_definition() {
        let (tree, leaves) = grown(300);
        for size in 0..=300 {
            assert_eq!(tree.root_at(size), Some(root_by_definition(&leaves[..size as usize])));
        }
        assert_eq!(tree.root_at(301), None);
        assert_eq!(tree.size(), 300);
    }

    #[test]
    fn every_leaf_is_proven_in_every_tree_and_nowhere_else() {
        let (tree, leaves) = grown(70);
        for size in 1..=70 {
            let root = tree.root_at(size).unwrap();
            for index in 0..size {
                let proof = tree.inclusion(index, size).unwrap();
                let leaf = &leaves[index as usize];
                assert!(verify_inclusion(leaf, index, size, &proof, &root));
                assert!(!verify_inclusion(leaf, index + 1, size, &proof, &root));
                assert!(!verify_inclusion(&root_by_definition(&[]), index, size, &proof, &root));
                assert!(!verify_inclusion(leaf, index, size, &[&proof[..], &[root]].concat(), &root));
                if let Some((_, shorter)) = proof.split_last() {
                    assert!(!verify_inclusion(leaf, index, size, shorter, &root));
                }
            }
            assert_eq!(tree.inclusion(size, size), None);
        }
    }

    #[test]
    fn every_tree_is_proven_a_prefix_of_every_later_one() {
        let (tree, _) = grown(70);
        for new in 0..=70 {
            let new_root = tree.root_at(new).unwrap();
            for old in (0..=new).filter(|old| *old > 0 || new == 0) {
                let old_root = tree.root_at(old).unwrap();
                let proof = tree.consistency(old, new).unwrap();
                assert!(verify_consistency(old, &old_root, new, &new_root, &proof), "{old} {new}");
                assert!(!verify_consistency(old, &leaf_hash(b"x"), new, &new_root, &proof));
                assert!(!verify_consistency(old, &old_root, new, &leaf_hash(b"x"), &proof));
                assert!(!verify_consistency(
                    old,
                    &old_root,
                    new,
                    &new_root,
                    &[&proof[..], &[new_root]].concat()
                ));
            }
        }
        assert_eq!((tree.consistency(3, 71), tree.consistency(0, 7)), (None, None));
        assert!(!verify_consistency(0, &empty_root(), 7, &tree.root_at(7).unwrap(), &[]));
        assert!(!verify_consistency(5, &empty_root(), 4, &empty_root(), &[]));
    }

    #[test]
    fn a_truncated_tree_is_the_tree_that_was() {
        let (mut tree, leaves) = grown(77);
        tree.truncate(41);
        assert_eq!(tree.root(), root_by_definition(&leaves[..41]));
        leaves[41..].iter().for_each(|leaf| tree.push(*leaf));
        assert_eq!(tree.root(), root_by_definition(&leaves));
    }

    #[test]
    fn a_million_leaves_are_quick_work() {
        let (tree, leaves) = grown(1_000_000);
        let root = tree.root();
        for index in [0, 1, 499_999, 999_999] {
            let proof = tree.inclusion(index, 1_000_000).unwrap();
            assert!(proof.len() <= 20);
            assert!(verify_inclusion(&leaves[index as usize], index, 1_000_000, &proof, &root));
        }
        let proof = tree.consistency(654_321, 1_000_000).unwrap();
        assert!(verify_consistency(654_321, &tree.root_at(654_321).unwrap(), 1_000_000, &root, &proof));
    }
}
