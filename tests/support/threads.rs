//! A process group of threads: every pair of ranks has a channel each way.

use std::fmt;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tensorhold::group::ProcessGroup;
use tensorhold::{Error, Result, Tensor};

/// So long a test waits for a rank that never sends, before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// One rank's ends of the channels.
pub struct ThreadGroup {
    rank: usize,
    to: Vec<Mutex<Sender<Vec<u8>>>>,
    from: Vec<Mutex<Receiver<Vec<u8>>>>,
}

impl ThreadGroup {
    /// The groups of so many ranks.
    pub fn all(size: usize) -> Vec<Self> {
        let mut groups: Vec<_> =
            (0..size).map(|rank| Self { rank, to: Vec::new(), from: Vec::new() }).collect();
        for receiver in 0..size {
            for sender in 0..size {
                let (to, from) = mpsc::channel();
                groups[receiver].from.push(Mutex::new(from));
                groups[sender].to.push(Mutex::new(to));
            }
        }
        groups
    }

    /// Runs `work` once on each of so many ranks, each on a thread of its own, and returns what each made, by rank.
    pub fn run<T: Send>(size: usize, work: impl Fn(Arc<dyn ProcessGroup>) -> T + Sync) -> Vec<T> {
        let work = &work;
        thread::scope(|scope| {
            let ranks = Self::all(size).into_iter().map(|group| scope.spawn(move || work(Arc::new(group))));
            ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    fn other(&self, rank: usize) -> Result<usize> {
        if rank != self.rank && rank < self.size() {
            return Ok(rank);
        }
        Err(self.failed(format!("there is no other rank {rank}")))
    }

    fn failed(&self, detail: String) -> Error {
        Error::Device {
            device: format!("{self:?}"),
            operation: "move a tensor",
            detail,
            remedy: "correct the test".into(),
        }
    }
}

impl ProcessGroup for ThreadGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn barrier(&self) -> Result<()> {
        for to in &self.to {
            to.lock().unwrap().send(Vec::new()).map_err(|error| self.failed(error.to_string()))?;
        }
        for from in &self.from {
            from.lock().unwrap().recv_timeout(PATIENCE).map_err(|error| self.failed(error.to_string()))?;
        }
        Ok(())
    }

    fn broadcast(&self, tensor: &Tensor) -> Result<()> {
        (0..self.size()).filter(|to| *to != self.rank).try_for_each(|to| self.send(tensor, to))
    }

    fn recv_broadcast(&self, into: &mut Tensor, root: usize) -> Result<()> {
        self.recv(into, root)
    }

    fn send(&self, tensor: &Tensor, to: usize) -> Result<()> {
        let to = self.to[self.other(to)?].lock().unwrap();
        to.send(tensor.to_host()?).map_err(|error| self.failed(error.to_string()))
    }

    fn recv(&self, into: &mut Tensor, from: usize) -> Result<()> {
        let from = self.from[self.other(from)?].lock().unwrap();
        let bytes = from.recv_timeout(PATIENCE).map_err(|error| self.failed(error.to_string()))?;
        if bytes.len() as u64 != into.nbytes() {
            return Err(self.failed(format!("{} bytes came for {:?}", bytes.len(), into.info())));
        }
        let device = into.device().clone();
        let stream = device.driver().stream()?;
        // SAFETY: both are as long, and stay until the stream has been synchronized, on the error path too.
        let copied = unsafe {
            stream.copy_to_device(into.get_mut().unwrap().as_mut_ptr(), bytes.as_ptr(), bytes.len() as u64)
        };
        stream.synchronize().and(copied)
    }
}

impl fmt::Debug for ThreadGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread rank {} of {}", self.rank, self.size())
    }
}
