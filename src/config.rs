//! Settings, and the only place that reads the environment.
//!
//! Defaults < `config.toml` of the house's folder < `LONGHOUSE_*` < flags. What is read here is
//! handed down; `longhouse config` shows each setting and where it came from.

use crate::failure::{Failure, exit};
use anyhow::Context;
use etcetera::BaseStrategy;
use figment::{
    Error as FigmentError, Figment, Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};
use schemas::{
    time::Seconds,
    token::{CallerName, NodeName, PoolName, SiteName},
    work::check::nearest,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// The file of settings in a house's folder.
const FILE: &str = "config.toml";
/// What settings are called in the environment.
const PREFIX: &str = "LONGHOUSE_";
/// Variables with our prefix that are no settings: the folder, which is needed to find the
/// settings, and what every job is told about itself.
const NO_SETTINGS: &[&str] = &["DIR", "WORK", "TASK", "INDEX", "ITEM", "NODE", "ATTEMPT"];

/// Everything that can be set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// The bus's address, when the house's folder does not say it.
    pub(crate) url: Option<String>,
    /// The file with the identity, when it is not the one in the house's folder.
    pub(crate) creds: Option<PathBuf>,
    /// As whom to speak.
    pub(crate) caller: CallerName,
    /// The pool whose scheduler is asked.
    pub(crate) pool: PoolName,
    /// The bus's server, where this machine runs it.
    pub(crate) bus: BusSettings,
    /// This machine as a node.
    pub(crate) worker: WorkerSettings,
    /// The manager, where it runs here.
    pub(crate) manager: actors::manager::Settings,
    /// The scheduler, where it runs here.
    pub(crate) scheduler: actors::scheduler::Settings,
}

/// The bus's server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BusSettings {
    /// The program, when it is not to be looked for.
    pub(crate) server: Option<PathBuf>,
    /// Its port; 0 is any free one.
    pub(crate) port: Option<u16>,
}

/// This machine as a node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WorkerSettings {
    /// Its name; by default the host's.
    pub(crate) name: Option<NodeName>,
    /// The LAN it is in.
    pub(crate) site: Option<SiteName>,
    /// What it lends, such as `cpus=6,memory=24GiB`; by default what it has.
    pub(crate) lend: Option<String>,
    /// Between beats; by default 2 s.
    pub(crate) beat_s: Option<Seconds>,
    /// From TERM to KILL; by default 5 s.
    pub(crate) grace_s: Option<Seconds>,
    /// The shortest time that a job lives on without a worker; by default 30 s.
    pub(crate) lost_after_s: Option<Seconds>,
    /// How long a job that waits for a reader waits for one; by default 30 s.
    pub(crate) reader_after_s: Option<Seconds>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: None,
            creds: None,
            caller: CallerName::owner(),
            pool: PoolName::main(),
            bus: BusSettings::default(),
            worker: WorkerSettings::default(),
            manager: actors::manager::Settings::default(),
            scheduler: actors::scheduler::Settings::default(),
        }
    }
}

/// The environment as it was when the program started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    variables: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// Takes it down.
    pub(crate) fn take() -> Self {
        Self { variables: std::env::vars_os().collect() }
    }

    /// One variable, as the system has it.
    pub(crate) fn os(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// One variable, when it is text.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.os(name)?.to_str()
    }

    /// What the keeper is given: out of it jobs get `PATH`, `HOME` …, and what a task names in
    /// `env_from_node`. Variables that are no text cannot be named by a task and are left out.
    pub(crate) fn for_keeper(&self) -> BTreeMap<String, String> {
        let text = |(name, value): (&OsString, &OsString)| {
            Some((name.to_str()?.to_owned(), value.to_str()?.to_owned()))
        };
        self.variables.iter().filter_map(text).collect()
    }

    /// All of it.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.variables.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// The same without what names a house; where the bus's server lies is true of any.
    pub(crate) fn for_a_new_house(&self) -> Self {
        let mut variables = self.variables.clone();
        variables.retain(|name, _| {
            let name = name.to_string_lossy();
            !name.starts_with(PREFIX) || name == "LONGHOUSE_BUS__SERVER"
        });
        Self { variables }
    }

    /// `LONGHOUSE_*`, as settings: `LONGHOUSE_BUS__PORT` is `bus.port`.
    fn settings(&self) -> Vec<(Vec<String>, String, String)> {
        let mut out = Vec::new();
        for (name, value) in &self.variables {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            let Some(key) = name.strip_prefix(PREFIX) else { continue };
            if key.is_empty() || NO_SETTINGS.contains(&key) {
                continue;
            }
            let path = key.to_lowercase().split("__").map(str::to_owned).collect();
            out.push((path, name.to_owned(), value.to_owned()));
        }
        out
    }
}

/// The folder of the house: as given, else `LONGHOUSE_DIR`, else below the data folder.
pub(crate) fn folder(given: Option<PathBuf>, environment: &Environment) -> anyhow::Result<PathBuf> {
    let given = given.or_else(|| {
        environment.os("LONGHOUSE_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
    });
    let folder = match given {
        Some(folder) => folder,
        None => base()?.data_dir().join("longhouse"),
    };
    std::path::absolute(&folder)
        .with_context(|| format!("could not find the folder `{}`", folder.display()))
}

/// Where what can be fetched again is kept.
pub(crate) fn cache_folder() -> anyhow::Result<PathBuf> {
    Ok(base()?.cache_dir().join("longhouse"))
}

/// The user's folder for settings of programs.
pub(crate) fn user_config_folder() -> anyhow::Result<PathBuf> {
    Ok(base()?.config_dir())
}

fn base() -> anyhow::Result<impl BaseStrategy> {
    etcetera::choose_base_strategy().map_err(|_| {
        Failure::usage("there is no home folder")
            .hint("say where the house lies: `--dir FOLDER` or LONGHOUSE_DIR")
            .into()
    })
}

/// A flag that sets something: its path, such as `bus.port`, and its value.
pub(crate) type Flag = (&'static str, Value);

/// The settings, and where each came from.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) settings: Settings,
    /// Each setting by its path, with its value and its origin.
    pub(crate) origins: BTreeMap<String, (serde_json::Value, String)>,
}

impl Config {
    /// Reads all sources.
    pub(crate) fn read(
        folder: &Path,
        environment: &Environment,
        flags: &[Flag],
    ) -> anyhow::Result<Self> {
        let file = folder.join(FILE);
        let mut figment = Figment::from(Source::defaults());
        if file.exists() {
            figment = figment.merge(Toml::file_exact(&file));
        }
        for (path, name, value) in environment.settings() {
            let value = value.parse().unwrap_or_else(|_| Value::from(value.clone()));
            figment = figment.merge(Source::new(name, nested(&path, value)));
        }
        for (path, value) in flags {
            let path: Vec<String> = path.split('.').map(str::to_owned).collect();
            let name = format!("--{}", path.last().map_or("", String::as_str).replace('_', "-"));
            figment = figment.merge(Source::new(name, nested(&path, value.clone())));
        }
        let merged: Dict = figment.extract().map_err(|error| unusable(error, &figment, &file))?;
        let known = flat(&Source::defaults().values);
        for key in flat(&merged).keys() {
            refuse_unknown(key, &known, &figment)?;
        }
        let settings: Settings =
            figment.extract().map_err(|error| unusable(error, &figment, &file))?;
        let origins = flat(&dict(&settings))
            .into_iter()
            .map(|(key, value)| {
                let json = serde_json::to_value(&value).unwrap_or_default();
                let origin = figment.find_metadata(&key).map_or("default".into(), origin);
                (key, (json, origin))
            })
            .collect();
        Ok(Self { settings, origins })
    }
}

/// Where a value came from, in words.
fn origin(metadata: &Metadata) -> String {
    match &metadata.source {
        Some(figment::Source::File(path)) => path.display().to_string(),
        _ => metadata.name.to_string(),
    }
}

/// A source with a name that people understand.
struct Source {
    name: String,
    values: Dict,
}

impl Source {
    fn new(name: String, values: Dict) -> Self {
        Self { name, values }
    }

    fn defaults() -> Self {
        Self { name: "default".to_owned(), values: dict(&Settings::default()) }
    }
}

impl Provider for Source {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, FigmentError> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

fn dict(settings: &Settings) -> Dict {
    match Value::serialize(settings) {
        Ok(Value::Dict(_, dict)) => dict,
        _ => unreachable!("settings are a struct with names that are text"),
    }
}

fn nested(path: &[String], value: Value) -> Dict {
    let Some((first, rest)) = path.split_first() else { return Dict::new() };
    let inner = if rest.is_empty() { value } else { Value::from(nested(rest, value)) };
    Dict::from([(first.clone(), inner)])
}

/// `a = {b = 1}` as `a.b` → 1.
fn flat(dict: &Dict) -> BTreeMap<String, Value> {
    fn walk(prefix: &str, dict: &Dict, out: &mut BTreeMap<String, Value>) {
        for (key, value) in dict {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Dict(_, inner) if !inner.is_empty() => walk(&path, inner, out),
                _ => {
                    out.insert(path, value.clone());
                }
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", dict, &mut out);
    out
}

fn refuse_unknown(
    key: &str,
    known: &BTreeMap<String, Value>,
    figment: &Figment,
) -> anyhow::Result<()> {
    let is_below = |known: &String| {
        key.strip_prefix(known.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    // A map whose keys the user chooses is one setting.
    if known.keys().any(is_below) {
        return Ok(());
    }
    let place =
        figment.find_metadata(key).map_or_else(String::new, |m| format!(" (in {})", origin(m)));
    let failure = Failure::new(exit::USAGE, format!("there is no setting `{key}`{place}"));
    Err(match nearest(key, known.keys().map(String::as_str)) {
        Some(near) => failure.hint(format!("did you mean `{near}`?")),
        None => failure.hint("`longhouse config` shows every setting there is"),
    }
    .into())
}

fn unusable(error: FigmentError, figment: &Figment, file: &Path) -> anyhow::Error {
    let key = error.path.join(".");
    let place = error.metadata.as_ref().or_else(|| figment.find_metadata(&key)).map(origin);
    let place = place.unwrap_or_else(|| file.display().to_string());
    let what =
        if key.is_empty() { "the settings".to_owned() } else { format!("the setting `{key}`") };
    Failure::new(exit::USAGE, format!("{what} cannot be used (in {place}): {}", error.kind)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let own = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
        Environment { variables: variables.iter().map(own).collect() }
    }

    fn read(toml: &str, variables: &[(&str, &str)], flags: &[Flag]) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), toml).unwrap();
        Config::read(dir.path(), &environment(variables), flags)
    }

    #[test]
    fn flags_beat_the_environment_which_beats_the_file_which_beats_defaults() {
        let toml = "url = 'nats://file:1'\npool = 'file'\n[bus]\nport = 1\n";
        let variables = [("LONGHOUSE_URL", "nats://env:1"), ("LONGHOUSE_BUS__PORT", "2")];
        let flags = [("bus.port", Value::from(3))];
        let config = read(toml, &variables, &flags).unwrap();

        assert_eq!(config.settings.pool.as_str(), "file");
        assert_eq!(config.settings.url.as_deref(), Some("nats://env:1"));
        assert_eq!(config.settings.bus.port, Some(3));
        let origin = |key: &str| config.origins[key].1.clone();
        assert!(origin("pool").ends_with("config.toml"), "{}", origin("pool"));
        assert_eq!(origin("url"), "LONGHOUSE_URL");
        assert_eq!(origin("bus.port"), "--port");
        assert_eq!(origin("caller"), "default");
    }

    #[test]
    fn an_unknown_setting_is_refused_with_the_nearest_name_and_its_place() {
        let error = read("[bus]\nprot = 1\n", &[], &[]).unwrap_err();
        let failure = Failure::of(&error);
        assert_eq!(failure.code, exit::USAGE);
        assert!(failure.message.contains("`bus.prot`"), "{}", failure.message);
        assert!(failure.message.contains("config.toml"), "{}", failure.message);
        assert_eq!(failure.hint.as_deref(), Some("did you mean `bus.port`?"));

        let error = read("", &[("LONGHOUSE_POOOL", "x")], &[]).unwrap_err();
        assert!(error.to_string().contains("LONGHOUSE_POOOL"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused_by_name() {
        let error = read("[bus]\nport = 'x'\n", &[], &[]).unwrap_err().to_string();
        assert!(error.contains("`bus.port`") && error.contains("config.toml"), "{error}");
        let error = read("pool = 'No Token'\n", &[], &[]).unwrap_err().to_string();
        assert!(error.contains("`pool`"), "{error}");
    }

    #[test]
    fn what_a_job_is_told_about_itself_is_no_setting() {
        let variables = [("LONGHOUSE_WORK", "x"), ("LONGHOUSE_INDEX", "1"), ("LONGHOUSE_DIR", "/")];
        assert!(read("", &variables, &[]).is_ok());
    }

    #[test]
    fn a_new_house_is_not_told_of_the_old_one() {
        let variables = [("LONGHOUSE_URL", "x"), ("LONGHOUSE_BUS__SERVER", "/n"), ("PATH", "/bin")];
        let left = environment(&variables).for_a_new_house();
        let names: Vec<_> = left.all().map(|(name, _)| name.to_string_lossy()).collect();
        assert_eq!(names, ["LONGHOUSE_BUS__SERVER", "PATH"]);
    }

    #[test]
    fn the_folder_is_the_flag_then_the_variable() {
        let environment = environment(&[("LONGHOUSE_DIR", "/b")]);
        assert_eq!(folder(Some("/a".into()), &environment).unwrap(), Path::new("/a"));
        assert_eq!(folder(None, &environment).unwrap(), Path::new("/b"));
    }
}
