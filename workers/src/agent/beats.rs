//! The beat: every 2 s, and at once when something has changed that matters.

use super::{Shared, inventory::disk_free_mib};
use bus::clock;
use schemas::{codec::Encoding, node::Beat, subject};
use std::{sync::Arc, time::Duration};
use tokio::time::MissedTickBehavior;

/// Free space on the disk is looked at so often.
const LOOK: Duration = Duration::from_secs(60);

/// Beats for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(shared.settings.beat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = shared.bus.connection();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.beat_now.notified() => {}
            changed = connection.changed() => {
                if changed.is_err() || !connection.borrow_and_update().up {
                    continue;
                }
            }
            _ = looks.tick() => {
                let free = disk_free_mib(&shared.folder);
                shared.inventory.send_modify(|i| Arc::make_mut(i).disk_free_mib = free);
                continue;
            }
        }
        if !shared.keeper.borrow().left {
            say(&shared, false).await;
        }
    }
}

/// One beat.
pub(super) async fn say(shared: &Shared, leaving: bool) {
    let beat = {
        let keeper = shared.keeper.borrow();
        Beat {
            node: shared.node.clone(),
            instance: keeper.instance,
            pool: shared.settings.pool.clone(),
            site: shared.settings.site.clone(),
            at: clock::wall(),
            since: keeper.since,
            total: shared.lent.clone(),
            used: keeper.state.used.clone(),
            inventory: shared.inventory.borrow().clone(),
            digest: keeper.state.digest,
            highest: keeper.state.highest,
            closing: keeper.state.leaving,
            leaving,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    };
    let body = schemas::codec::encode(Encoding::Json, &beat).into();
    let sent = shared.bus.publish(&subject::beat(&shared.node), Encoding::Json, body).await;
    if let Err(error) = sent {
        tracing::debug!(%error, "a beat could not be sent");
    }
}
