//! From the bytes of a stream to calls. A WRITE's data is copied once, from the transport's buffer to where the
//! filesystem wants it: the record it came in is never put together. Synchronous, without I/O.

use super::config::{CALL_MAX, RECORD_MAX};
use crate::rpc::{Fragments, Piece, RecordError};
use crate::v3::procedures::TRANSFER_MAX;
use crate::v3::wire::{Located, WriteHead, locate_write};
use alloc::vec::Vec;
use core::mem;
use moraine_fs::vfs::WriteData;
use moraine_platform::Buf;

/// A received call.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The record; of a WRITE without its data and the data's length.
    pub(super) head: Vec<u8>,
    /// A WRITE's data.
    pub(super) data: Option<WriteData>,
    /// The record is longer than any honest call, or its data not as long as it says: the arguments are garbage.
    pub(super) broken: bool,
}

/// What came of bytes fed.
#[derive(Debug)]
pub(super) enum Arrived {
    /// Nothing complete yet.
    Nothing,
    /// A WRITE's data, at least one byte, comes next: call [`Intake::supply`] before feeding more.
    Data {
        /// Where in the file it goes.
        offset: u64,
        /// How much it is.
        len: u32,
    },
    /// A call.
    Call(Incoming),
}

enum Stage {
    /// Collecting bytes until so many are there and it can be asked whether this is a WRITE.
    Telling(usize),
    /// Collecting a call that is no WRITE.
    Plain,
    /// A WRITE waits for its buffer.
    Waiting(WriteHead),
    /// Collecting a WRITE's data, so many bytes so far.
    Data(WriteData, usize),
    /// Padding after a WRITE's data, or whatever follows what cannot be used.
    Skip(Option<WriteData>, Broken),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    No,
    Yes,
}

/// The state between bytes of one connection.
pub(super) struct Intake {
    fragments: Fragments,
    head: Vec<u8>,
    stage: Stage,
}

impl Intake {
    pub(super) fn new() -> Intake {
        Intake { fragments: Fragments::new(RECORD_MAX), head: Vec::new(), stage: Stage::Telling(1) }
    }

    /// Whether nothing of a further call was seen.
    pub(super) fn at_boundary(&self) -> bool {
        self.fragments.at_boundary()
    }

    /// Takes bytes off the front of `input` until something is complete or the input is used up; returns how many.
    pub(super) fn feed(&mut self, input: &[u8]) -> Result<(usize, Arrived), RecordError> {
        let mut rest = input;
        loop {
            let room = match &self.stage {
                Stage::Telling(until) => until - self.head.len(),
                Stage::Plain if self.head.len() == CALL_MAX => {
                    self.stage = Stage::Skip(None, Broken::Yes);
                    continue;
                }
                Stage::Plain => CALL_MAX - self.head.len(),
                Stage::Waiting(_) => panic!("a buffer is supplied before more bytes are fed"),
                Stage::Data(data, at) => data.len - at,
                Stage::Skip(..) => usize::MAX,
            };
            match self.fragments.step(&mut rest, room)? {
                Piece::NeedMore => return Ok((input.len() - rest.len(), Arrived::Nothing)),
                Piece::End => return Ok((input.len() - rest.len(), Arrived::Call(self.end()))),
                Piece::Body(body) => {
                    if let Some(WriteHead { offset, len, .. }) = self.body(body) {
                        return Ok((input.len() - rest.len(), Arrived::Data { offset, len }));
                    }
                }
            }
        }
    }

    /// Gives the buffer for the data announced last, or for the beginning of it: the rest is skipped then.
    pub(super) fn supply(&mut self, data: WriteData) {
        let Stage::Waiting(head) = &self.stage else { panic!("a buffer is supplied when it was asked for") };
        assert!(data.len <= head.len as usize, "the buffer is no longer than was asked for");
        assert!(data.len > 0 || head.len == 0, "a WRITE that makes no progress is made again for ever");
        self.head.truncate(head.args_end);
        self.data(data, 0);
    }

    fn data(&mut self, data: WriteData, at: usize) {
        let whole = at == data.len;
        self.stage = if whole { Stage::Skip(Some(data), Broken::No) } else { Stage::Data(data, at) };
    }

    /// Takes in a piece of the record; returns a WRITE whose data comes next.
    fn body(&mut self, body: &[u8]) -> Option<WriteHead> {
        match mem::replace(&mut self.stage, Stage::Plain) {
            Stage::Telling(until) => {
                self.head.extend_from_slice(body);
                if self.head.len() < until {
                    self.stage = Stage::Telling(until);
                    return None;
                }
                match locate_write(&self.head) {
                    Located::NeedMore(until) => self.stage = Stage::Telling(until),
                    Located::NotWrite => self.stage = Stage::Plain,
                    Located::Write(head) if head.consistent && head.len <= TRANSFER_MAX => {
                        self.stage = Stage::Waiting(head);
                        if head.len > 0 {
                            return Some(head);
                        }
                        let buf = Buf::zeroed(0).expect("nothing needs no memory");
                        self.supply(WriteData { buf, skip: 0, len: 0 });
                    }
                    Located::Write(_) => self.stage = Stage::Skip(None, Broken::Yes),
                }
            }
            Stage::Plain => self.head.extend_from_slice(body),
            Stage::Data(mut data, at) => {
                let from = data.skip + at;
                data.buf[from..from + body.len()].copy_from_slice(body);
                self.data(data, at + body.len());
            }
            stage @ Stage::Skip(..) => self.stage = stage,
            Stage::Waiting(_) => unreachable!("nothing is fed while a buffer is awaited"),
        }
        None
    }

    /// The record ended.
    fn end(&mut self) -> Incoming {
        let head = mem::take(&mut self.head);
        match mem::replace(&mut self.stage, Stage::Telling(1)) {
            Stage::Telling(_) | Stage::Plain => Incoming { head, data: None, broken: false },
            Stage::Skip(data, broken) => Incoming { head, data, broken: broken == Broken::Yes },
            Stage::Data(..) | Stage::Waiting(_) => Incoming { head, data: None, broken: true },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdr::Encoder;
    use alloc::boxed::Box;

    fn record(body: &[u8], fragments: &[usize]) -> Vec<u8> {
        let (mut out, mut rest) = (Vec::new(), body);
        for len in fragments {
            let (piece, tail) = rest.split_at((*len).min(rest.len()));
            out.extend_from_slice(&(piece.len() as u32).to_be_bytes());
            out.extend_from_slice(piece);
            rest = tail;
        }
        out.extend_from_slice(&(rest.len() as u32 | 1 << 31).to_be_bytes());
        out.extend_from_slice(rest);
        out
    }

    fn call(procedure: u32, args: impl FnOnce(&mut Encoder)) -> Vec<u8> {
        let mut e = Encoder::default();
        e.u32(1).u32(0).u32(2).u32(100_003).u32(3).u32(procedure).u32(0).u32(0).u32(0).u32(0);
        args(&mut e);
        e.into_bytes()
    }

    fn write(offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
        call(7, |e| {
            e.opaque(&[5; 40]).u64(offset).u32(count).u32(0).opaque(data);
        })
    }

    type Summary = (Vec<u8>, Option<(usize, Vec<u8>)>, bool);

    fn feed_all(chunks: &[&[u8]]) -> Result<Vec<Summary>, RecordError> {
        let (mut intake, mut calls) = (Intake::new(), Vec::new());
        for mut chunk in chunks.iter().copied() {
            loop {
                let (used, arrived) = intake.feed(chunk)?;
                chunk = &chunk[used..];
                match arrived {
                    Arrived::Nothing => break,
                    Arrived::Data { offset, len } => {
                        let (skip, len) = ((offset % 4096) as usize, len as usize);
                        intake.supply(WriteData { buf: Buf::zeroed(skip + len).unwrap(), skip, len });
                    }
                    Arrived::Call(c) => {
                        calls.push((c.head, c.data.map(|d| (d.skip, d.bytes().to_vec())), c.broken));
                    }
                }
            }
        }
        Ok(calls)
    }

    #[test]
    fn r_01_calls_and_the_data_of_writes_are_the_same_at_every_split() {
        let data: Vec<u8> = (0..37).collect();
        let bodies = [
            call(1, |e| {
                e.opaque(&[5; 40]);
            }),
            write(4097, 37, &data),
            write(0, 0, &[]),
            call(0, |_| ()),
        ];
        let mut stream = record(&bodies[0], &[]);
        stream.extend_from_slice(&record(&bodies[1], &[3, 0, 60, 50]));
        stream.extend_from_slice(&record(&bodies[2], &[]));
        stream.extend_from_slice(&record(&bodies[3], &[1]));
        let whole = feed_all(&[&stream]).unwrap();
        assert_eq!(whole.len(), 4);
        assert_eq!(whole[0], (bodies[0].clone(), None, false));
        assert_eq!(whole[1].1, Some((1, data.clone())));
        assert_eq!(whole[1].0, bodies[1][..bodies[1].len() - 44]);
        assert_eq!(whole[2].1, Some((0, Vec::new())));
        assert!(whole.iter().all(|call| !call.2));
        for cut in 0..=stream.len() {
            assert_eq!(feed_all(&[&stream[..cut], &stream[cut..]]).unwrap(), whole, "cut at {cut}");
        }
        let bytes: Box<[&[u8]]> = stream.chunks(1).collect();
        assert_eq!(feed_all(&bytes).unwrap(), whole);
    }

    #[test]
    fn r_01_lies_about_lengths_end_in_garbage_and_the_next_call_is_still_found() {
        let mut lie = write(0, 37, &[1; 36]);
        let short = write(0, 400, &[1; 400]);
        let huge = write(0, u32::MAX, &[]);
        let long = call(1, |e| {
            e.raw(&[0; CALL_MAX]);
        });
        for body in [&lie, &short[..300], &huge, &long] {
            let mut stream = record(body, &[]);
            stream.extend_from_slice(&record(&call(0, |_| ()), &[]));
            let calls = feed_all(&[&stream]).unwrap();
            assert_eq!(calls.iter().map(|c| c.2).collect::<Vec<_>>(), [true, false]);
            assert!(calls[0].1.is_none() && calls[0].0.len() <= CALL_MAX);
        }
        lie.truncate(20);
        assert_eq!(feed_all(&[&record(&lie, &[])]).unwrap(), [(lie, None, false)]);
    }

    #[test]
    fn of_a_write_with_less_room_than_it_asks_for_the_beginning_is_taken_and_the_next_call_is_found() {
        let data: Vec<u8> = (0..100).collect();
        let stream = [record(&write(5, 100, &data), &[70]), record(&call(0, |_| ()), &[])].concat();
        for cut in 0..=stream.len() {
            let (mut intake, mut calls) = (Intake::new(), Vec::new());
            for mut chunk in [&stream[..cut], &stream[cut..]] {
                loop {
                    let (used, arrived) = intake.feed(chunk).unwrap();
                    chunk = &chunk[used..];
                    match arrived {
                        Arrived::Nothing => break,
                        Arrived::Data { .. } => {
                            let buf = Buf::zeroed(5 + 30).unwrap();
                            intake.supply(WriteData { buf, skip: 5, len: 30 });
                        }
                        Arrived::Call(call) => calls.push(call),
                    }
                }
            }
            assert_eq!(calls.len(), 2);
            assert!(calls.iter().all(|call| !call.broken));
            assert_eq!(calls[0].data.as_ref().map(WriteData::bytes), Some(&data[..30]));
        }
    }

    #[test]
    fn v3_18_a_write_of_one_mebibyte_is_taken_and_a_larger_record_ends_the_connection() {
        let data = alloc::vec![7; TRANSFER_MAX as usize];
        let calls = feed_all(&[&record(&write(1, TRANSFER_MAX, &data), &[])]).unwrap();
        assert!(calls[0].1.as_ref().is_some_and(|(_, d)| *d == data));
        let mark = (RECORD_MAX + 1) | 1 << 31;
        assert_eq!(feed_all(&[&mark.to_be_bytes()]), Err(RecordError::TooLong));
    }
}
