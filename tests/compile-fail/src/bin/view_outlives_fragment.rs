// broken: E0505
use tensorhold::allocator::{HostMemory, Pool, Request};

fn main() {
    let pool = Pool::new(HostMemory::new()).unwrap();
    let fragment = pool.place("t", Request::new(16, 16)).unwrap();
    let view = fragment.view();
    #[cfg(feature = "broken")]
    drop(fragment);
    assert_eq!(view.len(), 16);
}
