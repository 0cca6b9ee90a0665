//! What the demo audits: the source folders of all crates of this build, or those of a folder.

use crate::{
    config::Environment,
    failure::{Failure, exit},
    terminal,
};
use anyhow::Context;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::process::Command;

/// Each folder in a folder.
pub(super) fn below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let doing = || format!("could not look into `{}`", folder.display());
    let folder = folder.canonicalize().with_context(doing)?;
    let mut out = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(doing)? {
        let path = entry.with_context(doing)?.path();
        if path.is_dir() {
            out.push(path);
        }
    }
    if out.is_empty() {
        let message = format!("there is no folder in `{}`", folder.display());
        return Err(Failure::usage(message).hint("each folder in it becomes one job").into());
    }
    out.sort();
    Ok(out)
}

/// The folders of all crates that `longhouse` is built from, as Cargo has fetched them.
pub(super) async fn of_this_build(environment: &Environment) -> anyhow::Result<Vec<PathBuf>> {
    let Some(checkout) = checkout(environment) else {
        return Err(Failure::usage(
            "this is no checkout of longhouse, whose crates could be audited",
        )
        .hint("`longhouse demo FOLDER` audits each folder in FOLDER")
        .into());
    };
    let cargo = environment.get("CARGO").unwrap_or("cargo");
    let version = output(cargo, &["--version", "--verbose"], &checkout).await?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("`cargo --version --verbose` names no host")?;
    terminal::say("asking Cargo which crates this build is made of");
    let args = ["metadata", "--locked", "--format-version", "1", "--filter-platform", host];
    let metadata: Metadata = serde_json::from_str(&output(cargo, &args, &checkout).await?)
        .context("`cargo metadata` cannot be read")?;
    Ok(reached(&metadata))
}

/// Where our own source lies: as Cargo says when it runs us, else above the current folder.
fn checkout(environment: &Environment) -> Option<PathBuf> {
    let is_ours = |folder: &Path| {
        folder.join("Cargo.lock").is_file()
            && std::fs::read_to_string(folder.join("Cargo.toml"))
                .is_ok_and(|text| text.lines().any(|line| line.trim() == "name = \"longhouse\""))
    };
    let told = environment.os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = std::env::current_dir().ok()?;
    told.into_iter().chain(here.ancestors().map(Path::to_owned)).find(|folder| is_ours(folder))
}

async fn output(program: &str, args: &[&str], folder: &Path) -> anyhow::Result<String> {
    let shown = format!("{program} {}", args.join(" "));
    let run = Command::new(program)
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| {
            Failure::new(exit::FAILED, format!("could not run `{shown}`: {error}"))
                .hint("`longhouse demo FOLDER` needs no Cargo")
        })?;
    if !run.status.success() {
        let said = String::from_utf8_lossy(&run.stderr);
        let said: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).take(3).collect();
        anyhow::bail!("`{shown}` failed ({}): {}", run.status, said.join("; "));
    }
    Ok(String::from_utf8(run.stdout)?)
}

/// What we need of `cargo metadata`.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dep>,
}

#[derive(Deserialize)]
struct Dep {
    pkg: String,
    dep_kinds: Vec<DepKind>,
}

#[derive(Deserialize)]
struct DepKind {
    kind: Option<String>,
}

/// The folders of what `longhouse` reaches by normal and build dependencies, itself included.
fn reached(metadata: &Metadata) -> Vec<PathBuf> {
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let root = metadata.packages.iter().find(|package| package.name == "longhouse");
    let mut open: Vec<&str> = root.map(|package| package.id.as_str()).into_iter().collect();
    let mut seen: BTreeSet<&str> = open.iter().copied().collect();
    while let Some(node) = open.pop().and_then(|id| nodes.get(id)) {
        for dep in &node.deps {
            let is_built = dep.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev"));
            if is_built && seen.insert(&dep.pkg) {
                open.push(&dep.pkg);
            }
        }
    }
    let is_seen = |package: &&Package| seen.contains(package.id.as_str());
    let folder = |package: &Package| Some(package.manifest_path.parent()?.to_owned());
    let folders: BTreeSet<PathBuf> =
        metadata.packages.iter().filter(is_seen).filter_map(folder).collect();
    // Our own rooms lie in the folder of the root package, which would be counted twice.
    let root = root.and_then(folder);
    folders.into_iter().filter(|folder| Some(folder) != root.as_ref()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_tested_with_is_not_audited() {
        let metadata: Metadata = serde_json::from_value(serde_json::json!({
            "packages": [
                {"id": "l", "name": "longhouse", "manifest_path": "/l/Cargo.toml"},
                {"id": "bus", "name": "bus", "manifest_path": "/l/bus/Cargo.toml"},
                {"id": "b", "name": "b", "manifest_path": "/r/b-1/Cargo.toml"},
                {"id": "c", "name": "c", "manifest_path": "/r/c-1/Cargo.toml"},
                {"id": "d", "name": "d", "manifest_path": "/r/d-1/Cargo.toml"},
            ],
            "resolve": {"nodes": [
                {"id": "l", "deps": [
                    {"pkg": "bus", "dep_kinds": [{"kind": null}]},
                    {"pkg": "d", "dep_kinds": [{"kind": "dev"}]}]},
                {"id": "bus", "deps": [
                    {"pkg": "b", "dep_kinds": [{"kind": null}]},
                    {"pkg": "l", "dep_kinds": [{"kind": "dev"}]}]},
                {"id": "b", "deps": [{"pkg": "c", "dep_kinds": [{"kind": "build"}]}]},
                {"id": "c", "deps": []},
                {"id": "d", "deps": []},
            ]},
        }))
        .unwrap();
        let folders = reached(&metadata);
        assert_eq!(folders, ["/l/bus", "/r/b-1", "/r/c-1"].map(PathBuf::from));
    }

    #[test]
    fn a_folder_without_folders_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(below(dir.path()).unwrap_err().to_string().contains("no folder in"));
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let found = below(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
