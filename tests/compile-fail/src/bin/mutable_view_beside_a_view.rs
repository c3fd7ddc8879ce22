// broken: E0502
use tensorhold::allocator::{HostMemory, Pool, Request};

fn main() {
    let pool = Pool::new(HostMemory::new()).unwrap();
    let mut fragment = pool.place("t", Request::new(16, 16)).unwrap();
    let view = fragment.view();
    #[cfg(not(feature = "broken"))]
    assert_eq!(view.len(), 16);
    let writable = fragment.get_mut();
    assert!(writable.is_some());
    #[cfg(feature = "broken")]
    assert_eq!(view.len(), 16);
}
