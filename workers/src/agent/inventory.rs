//! What a machine is: processor, memory, cards, addresses.

use nvml_wrapper::Nvml;
use schemas::node::{Card, Inventory};
use std::path::Path;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, Networks, RefreshKind, System};

/// Looks at this machine. `folder` is where scratch folders lie. Takes a few milliseconds; blocks.
pub fn look(host: &str, folder: &Path) -> Inventory {
    let what = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(what).ok();
    let networks = Networks::new_with_refreshed_list().ok();
    let mut addresses: Vec<String> = networks
        .iter()
        .flat_map(|networks| networks.values())
        .flat_map(|network| network.ip_networks())
        .map(|network| network.addr)
        .filter(|addr| !addr.is_loopback() && !addr.is_multicast())
        .filter(|addr| !matches!(addr, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .map(|addr| addr.to_string())
        .collect();
    addresses.sort();
    addresses.dedup();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let os = [System::name(), System::os_version()];
    Inventory {
        host: host.to_owned(),
        os: os.into_iter().flatten().collect::<Vec<_>>().join(" "),
        arch: std::env::consts::ARCH.to_owned(),
        cpu: system
            .as_ref()
            .and_then(|system| system.cpus().first())
            .map_or(String::new(), |cpu| cpu.brand().trim().to_owned()),
        // Those that this process may use: a container shows all of its machine's.
        cores,
        memory_mib: system.as_ref().map_or(0, memory_mib),
        disk_free_mib: disk_free_mib(folder),
        cards: cards(),
        addresses,
    }
}

fn memory_mib(system: &System) -> u64 {
    let machine = system.total_memory();
    let limit = system.cgroup_limits().map_or(machine, |limits| limits.total_memory);
    machine.min(limit) >> 20
}

/// How much is free where scratch folders lie.
pub(crate) fn disk_free_mib(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize) >> 20)
}

fn cards() -> Vec<Card> {
    // Without a driver there is nothing to load, and that is no error.
    let Ok(nvml) = Nvml::init() else { return Vec::new() };
    let card = |index: u32| {
        let device = nvml.device_by_index(index).ok()?;
        Some(Card {
            index,
            name: device.name().unwrap_or_default(),
            uuid: device.uuid().ok(),
            vram_mib: device.memory_info().map_or(0, |memory| memory.total >> 20),
        })
    };
    (0..nvml.device_count().unwrap_or(0)).filter_map(card).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_cores_memory_and_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let machine = look("here", dir.path());
        assert!(machine.cores > 0 && machine.memory_mib > 0 && machine.disk_free_mib > 0);
        assert!(!machine.arch.is_empty() && machine.host == "here");
    }
}
