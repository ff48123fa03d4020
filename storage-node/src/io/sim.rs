//! A device for tests that loses power, or fails, at a chosen write, or between writes that are under way.

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
    /// This sector of it alone arrives.
    OnlySector(usize),
    /// Nothing of it arrives.
    Lost,
    /// All of it arrives, and nobody is told.
    Unanswered,
    /// The file system has no more room for new segments.
    NoSpace,
}

struct State {
    image: Vec<u8>,
    /// Length of each write so far.
    writes: Vec<usize>,
    /// The write (counted from 0) at which `Fate` strikes; every request after it fails.
    strike: Option<(u64, Fate)>,
    dead: bool,
    /// Writes wait in `held` instead of being done.
    holds: bool,
    held: Vec<Request>,
}

/// Shared by the device and the test that watches it.
#[derive(Clone)]
pub struct SimIo(Arc<Mutex<State>>);

/// Numbers for a seed (xorshift).
pub fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn arrive(place: &mut [u8], bytes: &[u8], mut does: impl FnMut(usize) -> bool) {
    for (sector, (to, from)) in place.chunks_mut(SECTOR).zip(bytes.chunks(SECTOR)).enumerate() {
        if does(sector) {
            to.copy_from_slice(from);
        }
    }
}

impl SimIo {
    pub fn new(image: Vec<u8>, strike: Option<(u64, Fate)>) -> Self {
        let state = State { image, writes: Vec::new(), strike, dead: false, holds: false, held: Vec::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// What is on the disk now.
    pub fn image(&self) -> Vec<u8> {
        self.0.lock().unwrap().image.clone()
    }

    /// Sectors of each write so far.
    pub fn write_sectors(&self) -> Vec<usize> {
        self.0.lock().unwrap().writes.iter().map(|len| len / SECTOR).collect()
    }

    pub fn writes(&self) -> u64 {
        self.0.lock().unwrap().writes.len() as u64
    }

    /// Changes the disk behind the store's back.
    pub fn tamper(&self, change: impl FnOnce(&mut [u8])) {
        change(&mut self.0.lock().unwrap().image);
    }

    /// Keeps the writes to come under way until [`SimIo::finish`].
    pub fn hold(&self) {
        self.0.lock().unwrap().holds = true;
    }

    pub fn held(&self) -> usize {
        self.0.lock().unwrap().held.len()
    }

    /// Ends the writes under way, the newest first, and holds no more.
    pub fn finish(&self) {
        let held = {
            let mut state = self.0.lock().unwrap();
            state.holds = false;
            std::mem::take(&mut state.held)
        };
        held.into_iter().rev().for_each(|request| self.submit(request));
    }

    /// What is on the disk if power goes while writes are under way: of each, any part of its sectors.
    pub fn image_after_power_loss(&self, seed: u64) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        let (mut image, mut dice) = (state.image.clone(), dice(seed));
        for request in &state.held {
            let start = request.offset as usize;
            // Whole writes are as likely as torn ones.
            let way = dice() % 4;
            let place = &mut image[start..start + request.buffer.len()];
            arrive(place, &request.buffer, |_| match way {
                0 => true,
                1 => false,
                _ => dice().is_multiple_of(2),
            });
        }
        image
    }
}

impl BlockIo for SimIo {
    fn submit(&self, request: Request) {
        let mut guard = self.0.lock().unwrap();
        let state = &mut *guard;
        if state.holds && request.operation == Operation::WriteDurable {
            state.held.push(request);
            return;
        }
        // The answer may come back to this device, so it is given without the lock.
        let mut outcome = None;
        if let Some(error) = transfer(state, &request, &mut outcome).err() {
            outcome = Some(Err(error));
        }
        drop(guard);
        request.run(|_, buffer, _| match outcome.take() {
            Some(Ok(Some(read))) => {
                buffer.copy_from_slice(&read);
                Ok(buffer.len())
            }
            Some(Ok(None)) => Ok(buffer.len()),
            Some(Err(error)) => Err(error),
            None => Err(super::short_transfer()),
        });
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        match state.strike {
            Some((at, Fate::NoSpace)) if state.writes.len() as u64 >= at => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn is_written(&self, _offset: u64, _len: u64) -> bool {
        true
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.dead {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        // What is read there afterwards is not known; zeros are the least helpful.
        state.image[offset as usize..(offset + len) as usize].fill(0);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.0.lock().unwrap().image.len() as u64
    }

    fn engine(&self) -> &'static str {
        "simulation"
    }
}

type Outcome = io::Result<Option<Vec<u8>>>;

fn transfer(state: &mut State, request: &Request, outcome: &mut Option<Outcome>) -> io::Result<()> {
    let (start, len) = (request.offset as usize, request.buffer.len());
    let place = state.image.get_mut(start..start + len).ok_or_else(super::short_transfer)?;
    if state.dead {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    if request.operation == Operation::Read {
        *outcome = Some(Ok(Some(place.to_vec())));
        return Ok(());
    }
    let write = state.writes.len() as u64;
    state.writes.push(len);
    let struck = state.strike.filter(|(at, fate)| *at == write && *fate != Fate::NoSpace);
    let Some((_, fate)) = struck else {
        place.copy_from_slice(&request.buffer);
        *outcome = Some(Ok(None));
        return Ok(());
    };
    state.dead = true;
    match fate {
        Fate::Lost | Fate::NoSpace => {}
        Fate::Unanswered => place.copy_from_slice(&request.buffer),
        Fate::OnlySector(only) => arrive(place, &request.buffer, |sector| sector == only),
        Fate::Torn(seed) => {
            let mut dice = dice(seed);
            arrive(place, &request.buffer, |_| dice().is_multiple_of(2));
        }
    }
    Err(io::Error::from_raw_os_error(libc::EIO))
}
