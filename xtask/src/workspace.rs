//! The workspace as `tidy` and `stats` see it: manifests, Rust files, documents.
//!
//! Owns the walk over the tree and the parsing of manifests. Reads only; a file that cannot be read or parsed is an error
//! that names it, never skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::source::Source;

/// A Markdown document.
#[derive(Debug)]
pub(crate) struct Document {
    /// Path from the workspace's root, with `/`.
    pub(crate) path: String,
    /// Its text.
    pub(crate) text: String,
}

/// One dependency line of a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dependency {
    /// The name it goes by.
    pub(crate) name: String,
    /// Whether only tests use it.
    pub(crate) for_tests: bool,
    /// Whether its version comes from the workspace's manifest.
    pub(crate) inherited: bool,
    /// Whether it switches on the feature `danger`.
    pub(crate) danger: bool,
}

/// The manifest of one crate.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// The crate.
    pub(crate) name: String,
    /// Path from the workspace's root, with `/`.
    pub(crate) path: String,
    /// All its dependencies, in the order production, build, tests.
    pub(crate) dependencies: Vec<Dependency>,
}

/// Everything that the rules look at.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The root directory.
    pub(crate) root: PathBuf,
    /// Manifests under `crates/` and `xtask/`.
    pub(crate) manifests: Vec<Manifest>,
    /// Names in `[workspace.dependencies]` that are not ours.
    pub(crate) external: BTreeSet<String>,
    /// Every Rust file.
    pub(crate) sources: Vec<Source>,
    /// Every Markdown file.
    pub(crate) documents: Vec<Document>,
}

#[derive(Deserialize)]
struct RootManifest {
    workspace: WorkspaceTable,
}

#[derive(Deserialize)]
struct WorkspaceTable {
    dependencies: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
struct CrateManifest {
    package: Package,
    #[serde(flatten)]
    tables: Dependencies,
    #[serde(default)]
    target: BTreeMap<String, Dependencies>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
}

#[derive(Deserialize)]
struct Dependencies {
    #[serde(default)]
    dependencies: BTreeMap<String, toml::Value>,
    #[serde(default, rename = "build-dependencies")]
    build: BTreeMap<String, toml::Value>,
    #[serde(default, rename = "dev-dependencies")]
    tests: BTreeMap<String, toml::Value>,
}

impl Manifest {
    /// Parses a crate's manifest.
    pub(crate) fn parse(path: &str, text: &str) -> Result<Self, Box<dyn Error>> {
        let manifest: CrateManifest = toml::from_str(text).map_err(|error| format!("{path}: {error}"))?;
        let mut dependencies = Vec::new();
        for tables in std::iter::once(&manifest.tables).chain(manifest.target.values()) {
            for (table, for_tests) in
                [(&tables.dependencies, false), (&tables.build, false), (&tables.tests, true)]
            {
                dependencies.extend(table.iter().map(|(name, value)| Dependency {
                    name: name.clone(),
                    for_tests,
                    inherited: value.get("workspace").and_then(toml::Value::as_bool) == Some(true),
                    danger: value.get("features").and_then(toml::Value::as_array).is_some_and(|features| {
                        features.iter().any(|feature| feature.as_str() == Some("danger"))
                    }),
                }));
            }
        }
        Ok(Self { name: manifest.package.name, path: path.to_owned(), dependencies })
    }
}

/// Names of the external dependencies in the root manifest.
pub(crate) fn external(text: &str) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let root: RootManifest = toml::from_str(text).map_err(|error| format!("Cargo.toml: {error}"))?;
    let outside = |(_, value): &(&String, &toml::Value)| value.get("path").is_none();
    Ok(root.workspace.dependencies.iter().filter(outside).map(|(name, _)| name.clone()).collect())
}

impl Workspace {
    /// Reads the tree under a root.
    pub(crate) fn load(root: &Path) -> Result<Self, Box<dyn Error>> {
        let mut files = Vec::new();
        walk(root, root, &mut files)?;
        files.sort();
        let (mut manifests, mut sources, mut documents) = (Vec::new(), Vec::new(), Vec::new());
        for path in files {
            let is_manifest = path.ends_with("/Cargo.toml") && !path.starts_with("bench/");
            if !(is_manifest || path.ends_with(".rs") || path.ends_with(".md")) {
                continue;
            }
            let text = fs::read_to_string(root.join(&path)).map_err(|error| format!("{path}: {error}"))?;
            if is_manifest {
                manifests.push(Manifest::parse(&path, &text)?);
            } else if path.ends_with(".rs") {
                sources.push(Source::new(&path, &text));
            } else {
                documents.push(Document { path, text });
            }
        }
        let test_files: BTreeSet<String> = sources.iter().flat_map(Source::test_files).collect();
        for source in sources.iter_mut().filter(|source| test_files.contains(&source.path)) {
            source.mark_as_tests();
        }
        let external = external(&fs::read_to_string(root.join("Cargo.toml"))?)?;
        Ok(Self { root: root.to_path_buf(), manifests, external, sources, documents })
    }
}

/// Collects the files under a directory, as paths from the root with `/`; build output and version control are left out.
fn walk(root: &Path, directory: &Path, files: &mut Vec<String>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        if kind.is_dir() {
            let skipped = [".git", "target", "node_modules"].iter().any(|skipped| name == *skipped);
            if !skipped {
                walk(root, &entry.path(), files)?;
            }
        } else if kind.is_file() {
            let path = entry.path();
            let relative = path.strip_prefix(root)?;
            let parts: Vec<_> =
                relative.components().map(|part| part.as_os_str().to_string_lossy()).collect();
            files.push(parts.join("/"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_every_table_are_seen() {
        let text = "[package]\nname = \"desk\"\n[dependencies]\nrisk.workspace = true\nserde = \"1\"\n\
                    [dev-dependencies]\ntempfile.workspace = true\n[target.'cfg(unix)'.dependencies]\nnix = { workspace = true }\n";
        let manifest = Manifest::parse("crates/desk/Cargo.toml", text).unwrap();
        let seen: Vec<_> =
            manifest.dependencies.iter().map(|d| (d.name.as_str(), d.for_tests, d.inherited)).collect();
        assert_eq!(
            seen,
            [("risk", false, true), ("serde", false, false), ("tempfile", true, true), ("nix", false, true)]
        );
    }

    #[test]
    fn our_own_crates_are_not_external() {
        let text = "[workspace.dependencies]\nmarket = { path = \"crates/market\" }\nserde = { version = \"1\" }\ncsv = \"1\"\n";
        assert_eq!(external(text).unwrap().into_iter().collect::<Vec<_>>(), ["csv", "serde"]);
    }
}
