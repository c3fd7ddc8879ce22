// broken: E0200
// Buffers are freed when a stream says that a copy has ended: only unsafe code may say so.

struct Mine;

#[cfg(feature = "broken")]
impl tensorhold::Stream for Mine {
    unsafe fn copy_to_device(&self, _: *mut u8, _: *const u8, _: u64) -> tensorhold::Result<()> {
        Ok(())
    }
    unsafe fn copy_to_host(&self, _: *mut u8, _: *const u8, _: u64) -> tensorhold::Result<()> {
        Ok(())
    }
    fn record(&self, _: usize) -> tensorhold::Result<()> {
        Ok(())
    }
    fn wait(&self, _: usize) -> tensorhold::Result<()> {
        Ok(())
    }
    fn has_passed(&self, _: usize) -> tensorhold::Result<bool> {
        Ok(true)
    }
    fn synchronize(&self) -> tensorhold::Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = Mine;
}
