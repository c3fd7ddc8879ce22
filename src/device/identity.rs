//! Which memory is which: by id (M4), since two can have one name.

use tensorhold_allocator::Memory;

/// Whether two are one memory.
///
/// # Errors
/// When they are not: what was got and what was expected, for a message.
pub(crate) fn check_same(got: &dyn Memory, expected: &dyn Memory) -> Result<(), (String, String)> {
    if got.id() == expected.id() { Ok(()) } else { Err(difference(got, expected)) }
}

/// How a message tells two memories apart that are not one.
pub(crate) fn difference(got: &dyn Memory, expected: &dyn Memory) -> (String, String) {
    let (name, other) = (got.name(), expected.name());
    if name != other {
        return (format!("memory of {name}"), format!("memory of {other}"));
    }
    let access = |memory: &dyn Memory| match memory.is_host_accessible() {
        true => "that the CPU can access",
        false => "that the CPU cannot access",
    };
    if got.is_host_accessible() != expected.is_host_accessible() {
        return (
            format!("memory of {name} {}", access(got)),
            format!("memory of {other} {}", access(expected)),
        );
    }
    (
        format!("another memory of the name {name:?} (id {})", got.id()),
        format!("the device's (id {})", expected.id()),
    )
}
