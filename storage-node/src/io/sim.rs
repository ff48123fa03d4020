//! A device for tests that loses power, or fails, at a chosen write.

use std::io;
use std::sync::{Arc, Mutex};

use super::{BlockIo, Operation, Request};

/// Bytes that a disk writes all or not at all.
const SECTOR: usize = 512;

/// What happens at the chosen write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Of the write in flight a random part of the sectors arrives, by this seed.
    Torn(u64),
    /// Nothing of it arrives.
    Lost,
    /// All of it arrives, and nobody is told.
    Unanswered,
    /// The file system has no more room for new segments.
    NoSpace,
}

struct State {
    image: Vec<u8>,
    writes: u64,
    /// The write (counted from 0) at which `Fate` strikes; every request after it fails.
    strike: Option<(u64, Fate)>,
    dead: bool,
}

/// Shared by the device and the test that watches it.
#[derive(Clone)]
pub struct SimIo(Arc<Mutex<State>>);

impl SimIo {
    pub fn new(image: Vec<u8>, strike: Option<(u64, Fate)>) -> Self {
        Self(Arc::new(Mutex::new(State { image, writes: 0, strike, dead: false })))
    }

    /// What is on the disk now.
    pub fn image(&self) -> Vec<u8> {
        self.0.lock().unwrap().image.clone()
    }

    pub fn writes(&self) -> u64 {
        self.0.lock().unwrap().writes
    }

    /// Changes the disk behind the store's back.
    pub fn tamper(&self, change: impl FnOnce(&mut [u8])) {
        change(&mut self.0.lock().unwrap().image);
    }
}

impl BlockIo for SimIo {
    fn submit(&self, request: Request) {
        let mut guard = self.0.lock().unwrap();
        let state = &mut *guard;
        request.run(|operation, buffer, offset| {
            let start = offset as usize;
            let place = state.image.get_mut(start..start + buffer.len()).ok_or_else(super::short_transfer)?;
            if state.dead {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            if operation == Operation::Read {
                buffer.copy_from_slice(place);
                return Ok(buffer.len());
            }
            let write = state.writes;
            state.writes += 1;
            let Some((at, fate)) = state.strike else {
                place.copy_from_slice(buffer);
                return Ok(buffer.len());
            };
            if write != at || fate == Fate::NoSpace {
                place.copy_from_slice(buffer);
                return Ok(buffer.len());
            }
            state.dead = true;
            match fate {
                Fate::Lost | Fate::NoSpace => {}
                Fate::Unanswered => place.copy_from_slice(buffer),
                Fate::Torn(seed) => {
                    let mut dice = seed | 1;
                    for (to, from) in place.chunks_mut(SECTOR).zip(buffer.chunks(SECTOR)) {
                        dice ^= dice << 13;
                        dice ^= dice >> 7;
                        dice ^= dice << 17;
                        if dice & 1 == 0 {
                            to.copy_from_slice(from);
                        }
                    }
                }
            }
            Err(io::Error::from_raw_os_error(libc::EIO))
        });
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        match state.strike {
            Some((at, Fate::NoSpace)) if state.writes >= at => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn size_bytes(&self) -> u64 {
        self.0.lock().unwrap().image.len() as u64
    }

    fn engine(&self) -> &'static str {
        "simulation"
    }
}
