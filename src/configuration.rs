//! `longhouse config`: each setting and where it came from.

use crate::{app::App, report::Report, style};
use comfy_table::Cell;
use serde_json::{Value, json};

/// Show each setting and where it came from
///
/// Defaults come first, then config.toml of the house's folder, then LONGHOUSE_* of the
/// environment (`bus.port` is LONGHOUSE_BUS__PORT), then flags.
#[derive(Debug, clap::Args)]
pub(crate) struct Configuration {}

impl Configuration {
    pub(crate) fn run(self, app: &App) -> anyhow::Result<Report> {
        let mut table = style::table(&["SETTING", "VALUE", "FROM"]);
        let mut settings = serde_json::Map::new();
        let dir = (Value::from(app.dir.display().to_string()), "flag, LONGHOUSE_DIR or default");
        let dir = ("dir".to_owned(), (dir.0, dir.1.to_owned()));
        let all = app.config.origins.iter().map(|(key, value)| (key.clone(), value.clone()));
        for (key, (value, from)) in [dir].into_iter().chain(all) {
            let shown = match &value {
                Value::Null => "–".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            table.add_row(vec![Cell::new(&key), Cell::new(shown), Cell::new(&from)]);
            settings.insert(key, json!({ "value": value, "from": from }));
        }
        Ok(Report::pair(style::lines(&table), &settings))
    }
}
