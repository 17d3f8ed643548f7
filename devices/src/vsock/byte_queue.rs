//! A queue of bytes that costs memory only while bytes are in it.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

/// Bytes allocated at once: large enough that allocation does not show next to the copy, small
/// enough that a short message is cheap.
const CHUNK_LEN: usize = 16 * 1024;

/// First in, first out. Whoever fills it bounds its length.
#[derive(Default)]
pub struct ByteQueue {
    /// The oldest first. All but the first start with data, all but the last end with it.
    chunks: VecDeque<Box<[u8]>>,
    /// Bytes of the first chunk that were taken out already.
    taken: usize,
    len: usize,
}

impl ByteQueue {
    /// Bytes in the queue.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Throws everything away.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Appends `count` bytes of `source`.
    ///
    /// # Errors
    /// What `source` answers, or `UnexpectedEof` when it ends early; what was read until then
    /// stays appended.
    pub fn fill_from(&mut self, source: &mut impl Read, count: usize) -> io::Result<()> {
        let mut missing = count;
        while missing > 0 {
            let space = self.space();
            let part_len = space.len().min(missing);
            let part = space.get_mut(..part_len).unwrap_or_default();
            match source.read(part)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                // A reader that claims more than it was given space for is not believed.
                read => {
                    let read = read.min(part_len);
                    self.len += read;
                    missing -= read;
                }
            }
        }
        Ok(())
    }

    /// Moves up to `limit` bytes to `sink` and tells how many; fewer only when the queue or
    /// the sink ends.
    ///
    /// # Errors
    /// What `sink` answers; bytes it took until then are gone from the queue.
    pub fn drain_to(&mut self, sink: &mut impl Write, limit: usize) -> io::Result<usize> {
        let mut moved = 0;
        while moved < limit {
            let front = self.front();
            let front = front
                .get(..front.len().min(limit - moved))
                .unwrap_or_default();
            if front.is_empty() {
                break;
            }
            let written = sink.write(front)?.min(front.len());
            if written == 0 {
                break;
            }
            self.advance(written);
            moved += written;
        }
        Ok(moved)
    }

    /// Free bytes at the end of the last chunk, which is a new one when there are none.
    fn space(&mut self) -> &mut [u8] {
        let end = self.taken + self.len;
        if end == self.chunks.len() * CHUNK_LEN {
            self.chunks.push_back(vec![0; CHUNK_LEN].into_boxed_slice());
        }
        let used = end % CHUNK_LEN;
        self.chunks
            .back_mut()
            .and_then(|chunk| chunk.get_mut(used..))
            .unwrap_or_default()
    }

    /// The oldest bytes that lie together.
    fn front(&self) -> &[u8] {
        let end = (self.taken + self.len).min(CHUNK_LEN);
        self.chunks
            .front()
            .and_then(|chunk| chunk.get(self.taken..end))
            .unwrap_or_default()
    }

    /// Takes out `count` bytes, which all lie in the first chunk.
    fn advance(&mut self, count: usize) {
        self.taken += count;
        self.len -= count;
        if self.taken == CHUNK_LEN || self.len == 0 {
            self.chunks.pop_front();
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in prop::collection::vec((any::<bool>(), 0_usize..3 * CHUNK_LEN), 1..40),
        ) {
            let mut queue = ByteQueue::default();
            let mut model = VecDeque::new();
            let mut next = 0_u8;
            for (fills, count) in steps {
                if fills {
                    let bytes: Vec<u8> = (0..count)
                        .map(|_| { next = next.wrapping_mul(31).wrapping_add(7); next })
                        .collect();
                    queue.fill_from(&mut bytes.as_slice(), count).unwrap();
                    model.extend(bytes);
                } else {
                    let mut out = Vec::new();
                    let moved = queue.drain_to(&mut out, count).unwrap();
                    prop_assert_eq!(moved, out.len());
                    prop_assert_eq!(out, model.drain(..count.min(model.len())).collect::<Vec<_>>());
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert!(queue.chunks.len() <= queue.len() / CHUNK_LEN + 2);
                prop_assert!(!queue.is_empty() || queue.chunks.is_empty());
            }
        }
    }

    #[test]
    fn a_short_source_is_an_error_that_loses_nothing() {
        let mut queue = ByteQueue::default();
        let error = queue.fill_from(&mut [1, 2, 3].as_slice(), 5).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let mut out = [0; 8];
        assert_eq!(queue.drain_to(&mut out.as_mut_slice(), 8).unwrap(), 3);
        assert_eq!(out, [1, 2, 3, 0, 0, 0, 0, 0]);
    }
}
