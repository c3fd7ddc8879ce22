//! No fault: what orders the threads is the standard library's. If it is reported, then that library is not instrumented.

use std::sync::{Arc, Condvar, Mutex, Once, mpsc};
use std::thread;

fn main() {
    let (sender, receiver) = mpsc::channel::<Box<u64>>();
    let shared = Arc::new((Mutex::new(Vec::new()), Condvar::new(), Once::new()));
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let (sender, shared) = (sender.clone(), Arc::clone(&shared));
            thread::spawn(move || {
                let (lock, come, once) = &*shared;
                once.call_once(|| lock.lock().unwrap().push(Box::new(0)));
                sender.send(Box::new(number)).unwrap();
                lock.lock().unwrap().push(Box::new(number));
                come.notify_all();
            })
        })
        .collect();
    drop(sender);
    assert_eq!(receiver.iter().map(|number| *number).sum::<u64>(), 6);
    let (lock, come, _) = &*shared;
    let seen = come.wait_while(lock.lock().unwrap(), |seen| seen.len() < 5).unwrap();
    assert_eq!(seen.iter().map(|number| **number).sum::<u64>(), 6);
    drop(seen);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
