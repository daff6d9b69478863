//! One transfer of the pool as commands to a device: split where the device wants smaller ones.

use super::DeviceError;
use alloc::vec::Vec;
use core::ops::Range;
use moraine_platform::{BlockDevice, Buf, Fua};

/// Reads all of `buf` at `offset`.
pub(super) async fn read(device: &dyn BlockDevice, offset: u64, buf: Buf) -> (Buf, Result<(), DeviceError>) {
    let piece_bytes = device.info().max_transfer as usize;
    if buf.len() <= piece_bytes {
        let done = device.read(offset, buf).await;
        return (done.buf, done.result.map_err(DeviceError::Io));
    }
    let mut buf = buf;
    let mut under_way = Vec::new();
    let mut result = Ok(());
    for range in pieces(buf.len(), piece_bytes) {
        match Buf::zeroed(range.len()) {
            Ok(piece) => under_way.push((range.clone(), device.read(offset + range.start as u64, piece))),
            Err(_) => {
                result = Err(DeviceError::OutOfMemory);
                break;
            }
        }
    }
    for (range, command) in under_way {
        let done = command.await;
        buf[range].copy_from_slice(&done.buf);
        result = result.and(done.result.map_err(DeviceError::Io));
    }
    (buf, result)
}

/// Writes all of `buf` at `offset`; with [`Fua::Yes`] each piece is durable when its command completes.
pub(super) async fn write(
    device: &dyn BlockDevice,
    offset: u64,
    buf: Buf,
    fua: Fua,
) -> (Buf, Result<(), DeviceError>) {
    let piece_bytes = device.info().max_transfer as usize;
    if buf.len() <= piece_bytes {
        let done = device.write(offset, buf, fua).await;
        return (done.buf, done.result.map_err(DeviceError::Io));
    }
    let mut under_way = Vec::new();
    let mut result = Ok(());
    for range in pieces(buf.len(), piece_bytes) {
        match Buf::copy_of(&buf[range.clone()]) {
            Ok(piece) => under_way.push(device.write(offset + range.start as u64, piece, fua)),
            Err(_) => {
                result = Err(DeviceError::OutOfMemory);
                break;
            }
        }
    }
    for command in under_way {
        result = result.and(command.await.result.map_err(DeviceError::Io));
    }
    (buf, result)
}

fn pieces(len: usize, piece_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(piece_bytes).map(move |start| start..len.min(start + piece_bytes))
}
