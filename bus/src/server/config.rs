//! The server's configuration: loopback only, no anonymous door, and what the measurements demand.

use super::{Error, Keys, Paths, private_folder, process, read_if_there, write_secret};
use crate::MAX_PAYLOAD;
use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    path::Path,
};

/// The port a NATS client expects.
pub const DEFAULT_PORT: u16 = 4222;

/// Free ports are sought here: below the range from which systems take ports for outgoing connections, so
/// that the one that is kept is not in use by chance at the next start.
const FREE_PORTS: std::ops::Range<u16> = 14_000..30_000;

const MAX_FILE_STORE_BYTES: u64 = 10 << 30;
const MAX_MEMORY_STORE_BYTES: u64 = 512 << 20;
const LOG_FILE_BYTES: u64 = 16 << 20;
const LOG_FILES: u32 = 4;

/// What differs from one house to the next.
#[derive(Debug)]
pub struct Config<'a> {
    /// Where its files lie.
    pub paths: &'a Paths,
    /// Who may come in.
    pub keys: &'a Keys,
    /// Where it listens on the loopback interface.
    pub port: u16,
    /// How many bytes JetStream may hold on disk.
    pub max_file_store_bytes: u64,
}

impl Config<'_> {
    /// The server's name: tells this house's server from any other that answers on the port.
    pub fn server_name(&self) -> String {
        server_name(self.keys)
    }

    /// The text of the configuration file.
    pub fn text(&self) -> Result<String, Error> {
        let Config { paths, keys, port, max_file_store_bytes } = self;
        let preload: String =
            keys.accounts().iter().map(|(key, jwt)| format!("    {key}: {jwt}\n")).collect();
        Ok(format!(
            "# Written by longhouse at every start of the bus; changes are lost.\n\
             server_name: {name}\n\
             listen: \"127.0.0.1:{port}\"\n\
             pid_file: {pid}\n\
             log_file: {log}\n\
             logfile_size_limit: {LOG_FILE_BYTES}\n\
             logfile_max_num: {LOG_FILES}\n\
             max_payload: {MAX_PAYLOAD}\n\
             # A connection that was cut in silence is noticed within 30 s, not within 6 minutes.\n\
             ping_interval: \"10s\"\n\
             ping_max: 2\n\
             jetstream {{\n    \
                 store_dir: {store}\n    \
                 max_file_store: {max_file_store_bytes}\n    \
                 max_memory_store: {MAX_MEMORY_STORE_BYTES}\n    \
                 # What was acknowledged is on disk within a second, not within two minutes.\n    \
                 sync_interval: \"1s\"\n    \
                 # Streams say themselves how many consumers they bear.\n    \
                 limits {{ default_max_consumers: -1 }}\n\
             }}\n\
             operator: {operator}\n\
             system_account: {system}\n\
             resolver: MEMORY\n\
             resolver_preload {{\n{preload}}}\n",
            name = quoted_text(&self.server_name()),
            pid = quoted(&paths.pid())?,
            log = quoted(&paths.log())?,
            store = quoted(&paths.jetstream())?,
            operator = keys.operator_jwt(),
            system = keys.system_account(),
        ))
    }

    /// Writes the file and makes the folders it names.
    pub fn write(&self) -> Result<(), Error> {
        for folder in [self.paths.bus(), self.paths.jetstream(), self.paths.logs()] {
            private_folder(&folder)?;
        }
        write_secret(&self.paths.config(), self.text()?.as_bytes())
    }
}

pub(crate) fn server_name(keys: &Keys) -> String {
    format!("longhouse-{}", keys.account()[1..13].to_lowercase())
}

fn quoted(path: &Path) -> Result<String, Error> {
    path.to_str().map(quoted_text).ok_or_else(|| Error::OddPath { path: path.into() })
}

fn quoted_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// How many bytes JetStream may hold: what the first start has written, else 10 GiB or half of the free disk,
/// the smaller, which is then kept, because streams reserve shares of it.
pub fn max_file_store_bytes(paths: &Paths) -> Result<u64, Error> {
    let path = paths.max_file_store();
    if let Some(kept) = read_if_there(&path)?.and_then(|text| text.trim().parse().ok()) {
        return Ok(kept);
    }
    let disk = rustix::fs::statvfs(paths.folder())
        .map_err(|error| Error::file("see the free space of", paths.folder())(error.into()))?;
    let bytes = MAX_FILE_STORE_BYTES.min(disk.f_bavail * disk.f_frsize / 2);
    private_folder(&paths.bus())?;
    write_secret(&path, format!("{bytes}\n").as_bytes())?;
    Ok(bytes)
}

/// Where a server may listen, and whether another port would do as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The port.
    pub number: u16,
    /// Whether the house is bound to it: kept from an earlier start, or asked for by number.
    pub fixed: bool,
}

/// Chooses the port: the one asked for, else the one kept, else the usual one, else a free one. `Some(0)`
/// asks for a free one where none is kept.
pub fn choose_port(asked: Option<u16>, kept: Option<u16>) -> Result<Port, Error> {
    let fixed = asked.filter(|port| *port != 0).or(kept);
    if let Some(number) = fixed {
        return if is_free(number) {
            Ok(Port { number, fixed: true })
        } else {
            Err(Error::PortTaken { port: number, holder: process::port_holder(number) })
        };
    }
    let usual = asked.is_none() && is_free(DEFAULT_PORT);
    Ok(Port { number: if usual { DEFAULT_PORT } else { free_port()? }, fixed: false })
}

/// A port on which nobody listens at this moment.
pub fn free_port() -> Result<u16, Error> {
    const TRIES: u32 = 100;
    let found = (0..TRIES).map(|_| fastrand::u16(FREE_PORTS)).find(|port| is_free(*port));
    match found {
        Some(port) => Ok(port),
        None => TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .map(|address| address.port())
            .map_err(Error::file("listen on", Path::new("127.0.0.1"))),
    }
}

/// Whether a server could listen there. The probe is bound only, never listened on: a child that some other
/// thread starts at this moment has a copy for a while, and a copy of a listener would be in the server's way.
pub(crate) fn is_free(port: u16) -> bool {
    use rustix::net::{
        AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt::set_socket_reuseaddr,
    };
    #[cfg(target_os = "linux")]
    let flags = SocketFlags::CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = SocketFlags::empty();
    let probe = || -> rustix::io::Result<()> {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
    };
    probe().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_kept_is_never_changed_in_silence() {
        let taken = free_port().unwrap();
        let other = TcpListener::bind(("127.0.0.1", taken)).unwrap();

        let error = choose_port(None, Some(taken)).unwrap_err();

        let me = std::process::id();
        assert!(error.to_string().contains(&format!("(process {me})")), "{error}");
        let kept = free_port().unwrap();
        let chosen = choose_port(Some(0), Some(kept)).unwrap();
        assert_eq!(chosen, Port { number: kept, fixed: true });
        drop(other);
    }

    #[test]
    fn a_free_port_is_not_one_that_outgoing_connections_use() {
        let port = choose_port(Some(0), None).unwrap();
        assert!(FREE_PORTS.contains(&port.number) && !port.fixed, "{port:?}");
    }

    #[test]
    fn the_share_of_the_disk_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(dir.path()).unwrap();
        let first = max_file_store_bytes(&paths).unwrap();
        assert!(first > 0 && first <= MAX_FILE_STORE_BYTES);
        std::fs::write(paths.max_file_store(), "12345\n").unwrap();
        assert_eq!(max_file_store_bytes(&paths).unwrap(), 12_345);
    }
}
