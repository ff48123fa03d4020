//! What an object is made of: its hash and chunks, found by reading it once.
//!
//! The bytes stream: at most one longest chunk and a few pieces are in memory, whatever the object's length.
//! Hashing and cutting run on the blocking pool, away from the tasks that answer requests.

use std::io::Read;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::{GetResult, GetResultPayload};
use tokio::sync::mpsc;

use common::chunker::Chunker;
use common::hash::{ChunkHash, ContentHash};
use common::manifest::{ChunkList, ChunkRef};

use crate::source::SourceError;

const PIECE_LEN: usize = 1 << 20;
const PIECES_AHEAD: usize = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    pub hash: ContentHash,
    pub len: u64,
    pub chunks: Vec<ChunkRef>,
}

/// Reads an opened object to its end.
pub async fn digest(object: GetResult) -> Result<Digest, SourceError> {
    let joined = match object.payload {
        GetResultPayload::File(file, _) => {
            // Room for a small file and its end.
            let piece_len = usize::try_from(object.meta.size + 1).unwrap_or(PIECE_LEN).min(PIECE_LEN);
            tokio::task::spawn_blocking(move || digest_file(file, piece_len)).await
        }
        payload => {
            let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
            let digesting = tokio::task::spawn_blocking(move || digest_pieces(receiver));
            let mut stream = GetResult { payload, ..object }.into_stream();
            while let Some(piece) = stream.next().await {
                if sender.send(piece?).await.is_err() {
                    break;
                }
            }
            drop(sender);
            digesting.await
        }
    };
    joined.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked).into()))
}

fn digest_file(mut file: std::fs::File, piece_len: usize) -> Result<Digest, SourceError> {
    let mut builder = Builder::default();
    let mut piece = vec![0u8; piece_len];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return builder.finish(),
            Ok(len) => builder.push(&piece[..len])?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn digest_pieces(mut pieces: mpsc::Receiver<Bytes>) -> Result<Digest, SourceError> {
    let mut builder = Builder::default();
    while let Some(piece) = pieces.blocking_recv() {
        builder.push(&piece)?;
    }
    builder.finish()
}

#[derive(Default)]
struct Builder {
    hasher: blake3::Hasher,
    chunker: Chunker,
    len: u64,
    chunks: Vec<ChunkRef>,
}

impl Builder {
    fn push(&mut self, piece: &[u8]) -> Result<(), SourceError> {
        self.hasher.update(piece);
        self.chunker.push(piece);
        self.len += piece.len() as u64;
        while let Some(chunk) = self.chunker.next_chunk() {
            self.add(&chunk)?;
        }
        Ok(())
    }

    fn add(&mut self, chunk: &[u8]) -> Result<(), SourceError> {
        if self.chunks.len() == ChunkList::COUNT_MAX {
            return Err(SourceError::TooLong);
        }
        self.chunks.push(ChunkRef { hash: ChunkHash::of(chunk), len: chunk.len() as u32 });
        Ok(())
    }

    fn finish(mut self) -> Result<Digest, SourceError> {
        for chunk in std::mem::take(&mut self.chunker).finish() {
            self.add(&chunk)?;
        }
        Ok(Digest { hash: self.hasher.finalize().into(), len: self.len, chunks: self.chunks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt};

    #[tokio::test]
    async fn a_file_and_a_streamed_object_of_the_same_bytes_have_the_same_chunks() {
        let bytes: Vec<u8> =
            (0..6_000_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()).collect();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), &bytes).unwrap();
        let folder = object_store::local::LocalFileSystem::new_with_prefix(dir.path()).unwrap();
        let memory = InMemory::new();
        let place = Path::from("x");
        memory.put(&place, bytes.clone().into()).await.unwrap();
        let mut digests = Vec::new();
        for store in [&folder as &dyn ObjectStore, &memory] {
            digests.push(digest(store.get(&place).await.unwrap()).await.unwrap());
        }
        assert_eq!(digests[0], digests[1]);
        assert_eq!((digests[0].len, digests[0].hash), (bytes.len() as u64, ContentHash::of(&bytes)));
        common::manifest::check_chunks(&digests[0].chunks, digests[0].len).unwrap();
    }
}
