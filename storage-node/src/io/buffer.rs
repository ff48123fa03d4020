//! Aligned buffers, and the bounded pool that reads take them from.
//!
//! The pool hands out pieces of one arena: a mapping aligned to huge pages, which halves what a large transfer
//! costs the kernel. The pieces are cut by a buddy allocator. When the arena is used up or in splinters a buffer
//! comes from the heap instead, within the same bound on the bytes that are out in all.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::BLOCK;

const HUGE_PAGE: usize = 2 << 20;
/// The largest piece of an arena is `BLOCK << MAX_ORDER` = 8 MiB.
const MAX_ORDER: usize = 11;

/// Bytes that begin at a multiple of [`BLOCK`]; as long as asked for, on whole blocks. Always initialised.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
    source: Source,
    /// Its share of the pool's bound, given back on drop.
    _permit: Option<OwnedSemaphorePermit>,
}

enum Source {
    Heap(Layout),
    Arena { arena: Arc<Arena>, page: u32, order: usize },
}

// SAFETY: the memory belongs to this value alone, as that of a Box<[u8]> does.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Zeroed, from the heap; `len` is rounded up to whole blocks, and to one at least.
    pub fn heap(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BLOCK);
        let layout = Layout::from_size_align(len, BLOCK).expect("buffers are far below the address space");
        // SAFETY: the layout's size is not zero.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Self { start, len, capacity: len, source: Source::Heap(layout), _permit: None }
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Shows the first `len` bytes from now on; what comes into sight is whatever was there.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "a buffer cannot grow beyond its capacity");
        self.len = len;
    }

    /// The bytes as a value that gives the buffer back when its last clone is dropped, without a copy.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is good for `capacity >= len` initialised bytes, and they are this value's own.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the reference to the value is unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        match &self.source {
            // SAFETY: allocated by `heap` with this layout, and freed once.
            Source::Heap(layout) => unsafe { dealloc(self.start.as_ptr(), *layout) },
            Source::Arena { arena, page, order } => arena.buddies().give_back(*page, *order),
        }
    }
}

/// Buffers for reads: at most so many bytes are out at once, whoever holds them and for however long.
#[derive(Clone)]
pub struct BufferPool {
    /// Absent when the system gives no mapping.
    arena: Option<Arc<Arena>>,
    permits: Arc<Semaphore>,
    permits_max: u32,
}

impl BufferPool {
    /// `arena_bytes` of huge pages, touched only as needed; `bound_bytes` out at most.
    pub fn new(arena_bytes: usize, bound_bytes: usize) -> Self {
        let permits_max = u32::try_from(bound_bytes / BLOCK).unwrap_or(u32::MAX);
        let permits = Arc::new(Semaphore::new(permits_max as usize));
        Self { arena: Arena::map(arena_bytes).map(Arc::new), permits, permits_max }
    }

    /// A buffer of `len` bytes rounded up to whole blocks, with whatever bytes were in it. Waits while the bound
    /// is reached.
    pub async fn take(&self, len: usize) -> AlignedBuf {
        let pages = u32::try_from(len.div_ceil(BLOCK)).unwrap_or(u32::MAX).clamp(1, self.permits_max);
        // The semaphore is never closed; without a permit the bound would be exceeded, not the memory's safety.
        let permit = Arc::clone(&self.permits).acquire_many_owned(pages).await.ok();
        let mut buffer = self.arena_buffer(len).unwrap_or_else(|| AlignedBuf::heap(len));
        buffer._permit = permit;
        buffer
    }

    fn arena_buffer(&self, len: usize) -> Option<AlignedBuf> {
        let arena = self.arena.as_ref()?;
        let len = len.max(1).next_multiple_of(BLOCK);
        let order = (len / BLOCK).next_power_of_two().trailing_zeros() as usize;
        let page = arena.buddies().take(order)?;
        // SAFETY: the page lies within the mapping, so the sum stays in one allocation.
        let start = unsafe { arena.base.add(page as usize * BLOCK) };
        let source = Source::Arena { arena: Arc::clone(arena), page, order };
        Some(AlignedBuf { start, len, capacity: len, source, _permit: None })
    }
}

/// One anonymous mapping, aligned to huge pages.
struct Arena {
    base: NonNull<u8>,
    mapping: (NonNull<u8>, usize),
    buddies: Mutex<Buddies>,
}

// SAFETY: the mapping is plain memory, and who may touch which part of it is settled under the mutex.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    fn map(bytes: usize) -> Option<Self> {
        let pages = bytes / BLOCK;
        let mapped_bytes = bytes + HUGE_PAGE;
        // SAFETY: a new private anonymous mapping touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return None;
        }
        let mapping = NonNull::new(address.cast::<u8>())?;
        let skip = mapping.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: the mapping is one huge page longer than what is used of it.
        let base = unsafe { mapping.add(skip) };
        // SAFETY: the range is within the mapping. A refusal only costs speed.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Some(Self { base, mapping: (mapping, mapped_bytes), buddies: Mutex::new(Buddies::new(pages)) })
    }

    fn buddies(&self) -> std::sync::MutexGuard<'_, Buddies> {
        self.buddies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`; every buffer of it holds the arena, so none is left.
        unsafe { libc::munmap(self.mapping.0.as_ptr().cast(), self.mapping.1) };
    }
}

/// Pieces of up to `BLOCK << SMALL_ORDER` are cut and joined so often that some of them stay cut.
const SMALL_ORDER: usize = 4;
/// So many of each small size.
const SMALL_KEPT: usize = 64;

/// Free pieces by size. The lowest address goes first, so that memory once touched is used again.
struct Buddies {
    free: [BTreeSet<u32>; MAX_ORDER + 1],
}

impl Buddies {
    fn new(pages: usize) -> Self {
        let mut free: [BTreeSet<u32>; MAX_ORDER + 1] = Default::default();
        free[MAX_ORDER] = (0..pages as u32)
            .step_by(1 << MAX_ORDER)
            .filter(|p| *p as usize + (1 << MAX_ORDER) <= pages)
            .collect();
        Self { free }
    }

    fn take(&mut self, order: usize) -> Option<u32> {
        let found = (order..=MAX_ORDER).find(|o| !self.free[*o].is_empty())?;
        let page = self.free[found].pop_first()?;
        for half in (order..found).rev() {
            self.free[half].insert(page + (1 << half));
        }
        Some(page)
    }

    fn give_back(&mut self, mut page: u32, mut order: usize) {
        if order <= SMALL_ORDER && self.free[order].len() < SMALL_KEPT {
            self.free[order].insert(page);
            return;
        }
        while order < MAX_ORDER && self.free[order].remove(&(page ^ (1 << order))) {
            page &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_pool_is_bounded_and_whole_again_when_all_is_back() {
        let pool = BufferPool::new(16 << 20, 32 << 20);
        let free_pages = || -> usize {
            let arena = pool.arena.as_ref().unwrap();
            arena.buddies().free.iter().enumerate().map(|(order, pieces)| pieces.len() << order).sum()
        };
        let whole = free_pages();
        let mut out = Vec::new();
        for len in [1, 4096, 5000, 1 << 20, (1 << 20) + 1, 4 << 20, 8 << 20, 9 << 20] {
            let buffer = pool.take(len).await;
            assert!(buffer.len() >= len && buffer.as_ptr().align_offset(BLOCK) == 0);
            out.push(buffer.into_bytes());
        }
        let more = tokio::time::timeout(std::time::Duration::from_millis(20), pool.take(16 << 20)).await;
        assert!(more.is_err(), "the bound holds");
        let clone = out[3].clone();
        drop(out);
        drop(clone);
        assert_eq!(pool.permits.available_permits(), (32 << 20) / BLOCK);
        assert_eq!(free_pages(), whole);
    }

    #[test]
    fn pieces_never_overlap() {
        let mut buddies = Buddies::new(1 << 13);
        let mut taken: Vec<(u32, usize)> = Vec::new();
        let mut state = 7u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let order = (state >> 60) as usize % (MAX_ORDER + 1);
            if state >> 32 & 1 == 0 {
                if let Some(page) = buddies.take(order) {
                    let clear = |(p, o): &(u32, usize)| page + (1 << order) <= *p || p + (1 << o) <= page;
                    assert!(taken.iter().all(clear));
                    taken.push((page, order));
                }
            } else if !taken.is_empty() {
                let (page, order) = taken.swap_remove((state >> 40) as usize % taken.len());
                buddies.give_back(page, order);
            }
        }
    }
}
