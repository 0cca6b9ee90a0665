//! The socket and the connection to the worker: never waits.

use crate::{
    protocol::{self, FromKeeper, Incoming, ToKeeper},
    socket,
};
use rustix::event::PollFlags;
use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

/// How long last words may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Where workers knock.
#[derive(Debug)]
pub(crate) struct Listener(UnixListener);

impl Listener {
    /// Binds the socket of a node's folder, for its owner only.
    pub(crate) fn bind(folder: &Path) -> io::Result<Self> {
        let listener = socket::bind(folder)?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The next one.
    pub(crate) fn accept(&self) -> Option<Link> {
        let (stream, _) = self.0.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(Link {
            stream,
            incoming: Incoming::default(),
            unsent: Vec::new(),
            start: 0,
            welcome: false,
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A worker, or one who wants to be.
#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    incoming: Incoming,
    unsent: Vec<u8>,
    start: usize,
    welcome: bool,
}

impl Link {
    /// Whether it said hello and is attached.
    pub(crate) fn is_welcome(&self) -> bool {
        self.welcome
    }

    /// It is attached.
    pub(crate) fn welcome(&mut self) {
        self.welcome = true;
    }

    /// What to wait for.
    pub(crate) fn wants(&self) -> PollFlags {
        if self.unsent() > 0 { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
    }

    /// So many bytes wait for the other side.
    pub(crate) fn unsent(&self) -> usize {
        self.unsent.len() - self.start
    }

    /// Takes in what is there, up to a bound, so that nobody else waits long; says whether the other side
    /// is still there.
    pub(crate) fn read(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        for _ in 0..64 {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => self.incoming.push(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// The next message.
    pub(crate) fn pull(&mut self) -> Result<Option<ToKeeper>, protocol::Error> {
        self.incoming.pull()
    }

    /// Puts a message into the buffer.
    pub(crate) fn put(&mut self, message: &FromKeeper) {
        protocol::put(&mut self.unsent, message);
    }

    /// Sends what can be sent; says whether the other side is still there.
    pub(crate) fn flush(&mut self) -> bool {
        while self.start < self.unsent.len() {
            match self.stream.write(&self.unsent[self.start..]) {
                Ok(0) => return false,
                Ok(n) => self.start += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        if self.start == self.unsent.len() {
            self.unsent.clear();
            self.unsent.shrink_to(256 * 1024);
            self.start = 0;
        } else if self.start > self.unsent.len() / 2 {
            self.unsent.drain(..self.start);
            self.start = 0;
        }
        true
    }

    /// Sends everything, and waits for that a little.
    pub(crate) fn flush_wholly(&mut self) {
        let _ = self.stream.set_nonblocking(false);
        let _ = self.stream.set_write_timeout(Some(LAST_WORDS));
        let _ = self.stream.write_all(&self.unsent[self.start..]);
        self.unsent.clear();
        self.start = 0;
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
