//! Keepers whose worker has gone: `longhouse down` ends them, too.

use crate::{
    protocol::{Error, FromKeeper, Hello, Incoming, PROTOCOL, ToKeeper, receive, send},
    socket,
};
use schemas::{amount::Room, time::Seconds, token::NodeName};
use std::{collections::BTreeMap, io, path::Path};

/// Ends the keepers of a house's folder to which no worker is attached: when their jobs have
/// ended, or with them (`now`). What could not be reported stays on the disk for the next start.
/// Returns the nodes' names.
pub fn end_keepers(dir: &Path, now: bool, say: &dyn Fn(&str)) -> io::Result<Vec<NodeName>> {
    let entries = match std::fs::read_dir(dir.join("nodes")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut ended = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some(node) = entry.file_name().to_str().and_then(|name| NodeName::new(name).ok())
        else {
            continue;
        };
        match end_keeper(&entry.path(), &node, now, say) {
            Ok(true) => ended.push(node),
            Ok(false) => {}
            // One that ends by itself at this moment breaks the connection.
            Err(Error::Io(_)) if socket::connect(&entry.path()).is_err() => ended.push(node),
            Err(error) => {
                let why = format!("the keeper of {node} in `{}`: {error}", entry.path().display());
                return Err(io::Error::other(why));
            }
        }
    }
    ended.sort();
    Ok(ended)
}

/// Whether there was one to end.
fn end_keeper(
    folder: &Path,
    node: &NodeName,
    now: bool,
    say: &dyn Fn(&str),
) -> Result<bool, Error> {
    let Ok(mut stream) = socket::connect(folder) else { return Ok(false) };
    let hello = Hello {
        protocol: PROTOCOL,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: node.clone(),
        lend: Room::default(),
        cards: Vec::new(),
        env: BTreeMap::new(),
        grace: Seconds::new(5),
        lost_after: Seconds::new(30),
        reader_after: Seconds::new(30),
    };
    send(&mut stream, &ToKeeper::Hello(Box::new(hello)))?;
    let mut incoming = Incoming::default();
    let mut exits = false;
    loop {
        let Some(word) = receive::<FromKeeper>(&mut stream, &mut incoming)? else {
            return Ok(true);
        };
        let state = match word {
            FromKeeper::Welcome { state, .. } => {
                send(&mut stream, &ToKeeper::Leave { now })?;
                let jobs = state.digest.running + state.digest.queued;
                if jobs > 0 && !now {
                    say(&format!("node {node}: waiting for {jobs} jobs that its keeper holds"));
                }
                state
            }
            FromKeeper::Refused { .. } => return Ok(false),
            FromKeeper::Left => return Ok(true),
            FromKeeper::State(state) => state,
            _ => continue,
        };
        if state.leaving && state.digest.running + state.digest.queued == 0 && !exits {
            exits = true;
            send(&mut stream, &ToKeeper::Exit)?;
        }
    }
}
