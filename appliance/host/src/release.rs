//! The target of a move was declared dead after it had been granted the VM. Its domain's word that it does not run stands for the release that
//! it cannot send: that answer is given here to the source's VMM, in the words of the move (docs/formats/handover.md).

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rebec_migrate::{
    frame::PREAMBLE_BYTES,
    ledger::Right,
    message::{FromSource, FromTarget, MESSAGE_HEAD_BYTES, Message, MessageHead},
};

/// How long the VMM may take to say what it waits for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest message that is read here: a ledger record.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Answers a VMM that asks for a target which will never answer, until it hangs up.
pub fn answer_for_the_dead(mut control: UnixStream) -> Result<()> {
    control.set_read_timeout(Some(PATIENCE))?;
    let mut preamble = [0; PREAMBLE_BYTES];
    control.read_exact(&mut preamble).context("read whom the VMM asks")?;
    control.write_all(&preamble)?;
    let mut head = [0; MESSAGE_HEAD_BYTES];
    control.read_exact(&mut head).context("read what the VMM asks")?;
    let head = MessageHead::from_bytes(&head)?;
    if head.length() > MESSAGE_BYTES_MAX {
        bail!("the VMM says something else than what it granted");
    }
    let mut body = vec![0; head.length()];
    control.read_exact(&mut body)?;
    let FromSource::Resume { record } = head.read(&body)? else { bail!("the VMM says something else than what it granted") };
    if record.right != Right::Granted {
        bail!("the VMM has granted nothing");
    }
    control.write_all(&FromTarget::Released { epoch: record.epoch }.to_frame())?;
    // It hangs up when it has heard.
    io::copy(&mut control, &mut io::sink()).map(drop).or(Ok(()))
}

#[cfg(test)]
mod tests {
    use rebec_migrate::{
        frame::{Preamble, Role, VERSIONS},
        ledger::{MoveId, Record, VmId},
    };

    use super::*;

    fn ask(right: Right) -> (Result<()>, Vec<u8>) {
        let (mut near, far) = UnixStream::pair().unwrap();
        let answering = std::thread::spawn(move || answer_for_the_dead(far));
        let preamble = Preamble { speaks: VERSIONS, role: Role::Control, streams: 1, move_id: MoveId([7; 16]) }.to_bytes();
        near.write_all(&preamble).unwrap();
        let record = Record { right, vm: VmId([9; 16]), epoch: 5, move_id: MoveId([7; 16]) };
        near.write_all(&FromSource::Resume { record }.to_frame()).unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = vec![];
        near.read_to_end(&mut heard).unwrap();
        assert_eq!(heard[..PREAMBLE_BYTES], preamble);
        (answering.join().unwrap(), heard.split_off(PREAMBLE_BYTES))
    }

    #[test]
    fn what_was_granted_is_given_back_and_nothing_else() {
        let (outcome, heard) = ask(Right::Granted);
        assert!(outcome.is_ok());
        assert_eq!(heard, FromTarget::Released { epoch: 5 }.to_frame());
        let (outcome, heard) = ask(Right::Holding);
        assert!(outcome.is_err() && heard.is_empty());
    }
}
