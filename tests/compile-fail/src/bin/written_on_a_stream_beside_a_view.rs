// broken: E0502
// A stream writes to a range only while no view of it lives.

use tensorhold::allocator::{Fragment, OrderedStream};

fn write(fragment: &mut Fragment, stream: &dyn OrderedStream) {
    let _bytes = fragment.as_bytes().unwrap();
    let guard = fragment.use_mut_on(stream).unwrap();
    #[cfg(feature = "broken")]
    println!("{}", _bytes.len());
    drop(guard);
}

fn main() {
    let _ = write;
}
