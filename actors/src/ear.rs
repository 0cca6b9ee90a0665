//! The tasks beside an actor, each of which hears one thing for it.
//!
//! An actor that has lost an ear looks alive and hears nothing, so it ends with the first that fails;
//! whoever started it sees that and starts another.

use futures::FutureExt;
use ractor::{ActorRef, Message};
use std::panic::AssertUnwindSafe;
use tokio::task::JoinHandle;

/// Begins to hear; a panic ends the actor, too.
pub(crate) fn open<M: Message>(
    me: &ActorRef<M>,
    hearing: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let me = me.clone();
    tokio::spawn(async move {
        // Nothing that the ear shares is used again: the actor ends.
        if AssertUnwindSafe(hearing).catch_unwind().await.is_err() {
            tracing::error!("an ear has failed: its actor ends");
            me.stop(Some("one of its ears has failed".to_owned()));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ractor::{Actor, ActorProcessingErr};

    struct Deaf;

    impl Actor for Deaf {
        type Msg = ();
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_actor_ends_with_the_first_ear_that_fails_and_not_with_one_that_is_done() {
        let (me, mut join) = Actor::spawn(None, Deaf, ()).await.unwrap();
        open(&me, async {}).await.unwrap();
        assert!((&mut join).now_or_never().is_none());
        open(&me, async { panic!("an ear fails") }).await.unwrap();
        join.await.unwrap();
    }
}
