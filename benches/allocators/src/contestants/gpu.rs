//! `gpu-allocator` on a Vulkan device that exists in its functions alone.
//!
//! Its sub-allocator is private, but the allocator around it wants little of a device: the properties of its memory,
//! and blocks of it, which here are addresses counted up to a limit. The limit is the capacity. What a real device would
//! take for a block is not in the figures.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::sync::{Mutex, MutexGuard};

use ash::vk::{self, Handle};
use gpu_allocator::MemoryLocation;
use gpu_allocator::vulkan::{
    Allocation, AllocationCreateDesc, AllocationScheme, Allocator, AllocatorCreateDesc,
};

use super::{Contestant, GRANULE};

pub(crate) struct GpuAllocator(Allocator);

impl Contestant for GpuAllocator {
    type Live = Allocation;

    fn name() -> String {
        "gpu-allocator".into()
    }

    fn new(capacity: u64) -> Result<Self, String> {
        *device() = Device { limit: capacity, ..Device::new() };
        let created = AllocatorCreateDesc {
            // SAFETY: the functions that are named have the signatures of their names; the others are never called.
            instance: unsafe { ash::Instance::load_with(function, vk::Instance::from_raw(1)) },
            // SAFETY: as above.
            device: unsafe { ash::Device::load_with(function, vk::Device::from_raw(1)) },
            physical_device: vk::PhysicalDevice::from_raw(1),
            debug_settings: Default::default(),
            buffer_device_address: false,
            allocation_sizes: Default::default(),
        };
        Allocator::new(&created).map(Self).map_err(|error| error.to_string())
    }

    #[inline]
    fn allocate(&mut self, size: u64) -> Option<(u64, Allocation)> {
        let wanted = AllocationCreateDesc {
            name: "t",
            requirements: vk::MemoryRequirements { size, alignment: GRANULE, memory_type_bits: 1 },
            location: MemoryLocation::GpuOnly,
            linear: true,
            allocation_scheme: AllocationScheme::GpuAllocatorManaged,
        };
        let placed = self.0.allocate(&wanted).ok()?;
        // SAFETY: the handle is only read: it is the address of the block.
        let block = unsafe { placed.memory() }.as_raw();
        Some((block + placed.offset(), placed))
    }

    #[inline]
    fn free(&mut self, live: Allocation) {
        self.0.free(live).expect("a live allocation");
    }

    fn is_empty(&mut self) -> bool {
        // It keeps one empty block.
        let report = self.0.generate_report();
        report.allocations.is_empty() && report.blocks.len() <= 1
    }
}

/// The device. One allocator uses it at a time.
struct Device {
    limit: u64,
    used: u64,
    next: u64,
    /// Address to size.
    blocks: BTreeMap<u64, u64>,
}

impl Device {
    const fn new() -> Self {
        Self { limit: 0, used: 0, next: 1 << 30, blocks: BTreeMap::new() }
    }
}

static DEVICE: Mutex<Device> = Mutex::new(Device::new());

fn device() -> MutexGuard<'static, Device> {
    DEVICE.lock().expect("no one panics with the lock")
}

/// The device's function of a name; null for one that it lacks.
fn function(name: &CStr) -> *const c_void {
    match name.to_bytes() {
        b"vkGetPhysicalDeviceProperties" => properties as *const c_void,
        b"vkGetPhysicalDeviceMemoryProperties" => memory_properties as *const c_void,
        b"vkAllocateMemory" => allocate_memory as *const c_void,
        b"vkFreeMemory" => free_memory as *const c_void,
        _ => std::ptr::null(),
    }
}

unsafe extern "system" fn properties(_: vk::PhysicalDevice, out: *mut vk::PhysicalDeviceProperties) {
    let limits = vk::PhysicalDeviceLimits { buffer_image_granularity: 1, ..Default::default() };
    // SAFETY: as Vulkan says, the caller has a place for them.
    unsafe { out.write(vk::PhysicalDeviceProperties { limits, ..Default::default() }) };
}

unsafe extern "system" fn memory_properties(
    _: vk::PhysicalDevice,
    out: *mut vk::PhysicalDeviceMemoryProperties,
) {
    let mut properties = vk::PhysicalDeviceMemoryProperties {
        memory_type_count: 1,
        memory_heap_count: 1,
        ..Default::default()
    };
    properties.memory_types[0].property_flags = vk::MemoryPropertyFlags::DEVICE_LOCAL;
    properties.memory_heaps[0] =
        vk::MemoryHeap { size: device().limit, flags: vk::MemoryHeapFlags::DEVICE_LOCAL };
    // SAFETY: as Vulkan says, the caller has a place for them.
    unsafe { out.write(properties) };
}

unsafe extern "system" fn allocate_memory(
    _: vk::Device,
    wanted: *const vk::MemoryAllocateInfo<'_>,
    _: *const vk::AllocationCallbacks<'_>,
    out: *mut vk::DeviceMemory,
) -> vk::Result {
    // SAFETY: as Vulkan says, the caller has one.
    let size = unsafe { (*wanted).allocation_size };
    let mut device = device();
    if size > device.limit - device.used {
        return vk::Result::ERROR_OUT_OF_DEVICE_MEMORY;
    }
    let address = device.next;
    device.used += size;
    device.next += size.next_multiple_of(GRANULE);
    device.blocks.insert(address, size);
    // SAFETY: as Vulkan says, the caller has a place for it.
    unsafe { out.write(vk::DeviceMemory::from_raw(address)) };
    vk::Result::SUCCESS
}

unsafe extern "system" fn free_memory(
    _: vk::Device,
    memory: vk::DeviceMemory,
    _: *const vk::AllocationCallbacks<'_>,
) {
    let mut device = device();
    let size = device.blocks.remove(&memory.as_raw()).expect("a block of this device");
    device.used -= size;
}
