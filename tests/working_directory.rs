//! A checkpoint stays what it was when the process goes to another directory. In a program of its own, whose directory no other test relies on.

mod support;

use support::{assert_holds, bytes_tensor, single};
use tensorhold::{Device, Loader};

#[test]
fn an_open_checkpoint_is_found_from_another_working_directory() {
    let tensors = [bytes_tensor("a", 10_000), bytes_tensor("b", 300)];
    let (folder, path) = single(&tensors);
    std::env::set_current_dir(folder.path()).unwrap();
    let checkpoint = Loader::new(Device::host()).files([path.file_name().unwrap()]).open().unwrap();
    std::env::set_current_dir("/").unwrap();
    checkpoint.check_unchanged().unwrap();
    assert_holds(&checkpoint.loader().load().unwrap(), &tensors);
}
