use proptest::prelude::*;

use super::*;

fn request() -> impl Strategy<Value = Request> {
    let size = prop_oneof![1 => Just(0), 8 => 1..5000_u64, 1 => (1_u64 << 32)..(1 << 40)];
    (size, 0..13_u32).prop_map(|(size, shift)| Request::new(size, 1 << shift))
}

proptest! {
    #[test]
    fn layouts_are_aligned_in_order_disjoint_and_within_their_regions(
        requests in prop::collection::vec(request(), 0..60), limit in prop::option::of(1..20_000_u64)
    ) {
        let layout = lay_out(&requests, limit).unwrap();
        prop_assert_eq!(layout.placements.len(), requests.len());
        let mut ends = vec![0; layout.regions.len()];
        let mut last = 0;
        for (request, placement) in requests.iter().zip(&layout.placements).filter(|(request, _)| request.size > 0) {
            let region = placement.region as usize;
            prop_assert!(placement.offset.is_multiple_of(request.align) && region >= last);
            prop_assert!(placement.offset >= ends[region], "overlap");
            prop_assert!(placement.offset - ends[region] < request.align, "more padding than alignment needs");
            prop_assert!(layout.regions[region].align >= request.align);
            (ends[region], last) = (placement.offset + request.size, region);
        }
        let sizes: Vec<u64> = layout.regions.iter().map(|region| region.size).collect();
        prop_assert_eq!(&ends, &sizes, "a region is exactly as long as it needs to be");
        prop_assert!(!sizes.contains(&0));
        for (region, &size) in sizes.iter().enumerate() {
            let alone = layout.placements.iter().zip(&requests).filter(|(p, r)| p.region as usize == region && r.size > 0).count() == 1;
            prop_assert!(size <= limit.unwrap_or(u64::MAX) || alone);
        }
    }
}

#[test]
fn an_exact_fit_is_never_refused() {
    let mut bump = Bump::new(1000);
    assert_eq!(bump.place(Request::new(744, 256)), Some(0));
    assert_eq!(bump.place(Request::new(233, 256)), None);
    assert_eq!(bump.place(Request::new(232, 256)), Some(768));
    assert_eq!(bump.place(Request::new(0, 1)), Some(1000));
    assert_eq!(bump.place(Request::new(1, 1)), None);
    assert_eq!(bump.used(), 1000);
}

#[test]
fn empty_requests_take_no_space_and_no_padding() {
    let requests = [(1, 1), (0, 4096), (1, 1), (0, 1)].map(|(size, align)| Request::new(size, align));
    let layout = lay_out(requests, None).unwrap();
    assert_eq!(layout.regions[..], [RegionShape { size: 2, align: 1 }]);
    assert_eq!(lay_out([Request::new(0, 256); 3], None).unwrap().regions.len(), 0);
}

#[test]
fn sizes_past_u64_and_odd_alignments_are_errors() {
    let huge = Request::new(u64::MAX - 10, 1);
    assert_eq!(lay_out([huge], None).unwrap().regions[0].size, u64::MAX - 10);
    let error = lay_out([huge, Request::new(11, 1)], None).unwrap_err();
    assert_eq!(error, LayoutError::Overflow { index: 1, size: 11 });
    assert_eq!(
        lay_out([huge, Request::new(1, 256)], None).unwrap_err(),
        LayoutError::Overflow { index: 1, size: 1 }
    );
    for align in [0, 3] {
        let requests = [Request::new(1, 1), Request::new(1, align)];
        assert_eq!(lay_out(requests, None).unwrap_err(), LayoutError::Alignment { index: 1, align });
        assert_eq!(Bump::new(10).place(requests[1]), None);
    }
}

#[test]
fn offsets_near_the_end_of_u64_are_exact() {
    let sizes = [(1 << 62) + 1, 1 << 62, 1 << 62, (1 << 61) - 256, 0, 1];
    let aligns = [1, 256, 1, 1 << 61, 4096, 1];
    let requests = || sizes.iter().zip(aligns).map(|(&size, align)| Request::new(size, align));
    let layout = lay_out(requests().collect::<Vec<_>>(), None).unwrap();
    let offsets: Vec<u64> = layout.placements.iter().map(|placement| placement.offset).collect();
    assert_eq!(offsets[..4], [0, (1 << 62) + 256, (1 << 63) + 256, 7 << 61]);
    assert_eq!(offsets[5], u64::MAX - 255);
    assert_eq!(layout.regions[..], [RegionShape { size: u64::MAX - 254, align: 1 << 61 }]);
    let limited = lay_out(requests().collect::<Vec<_>>(), Some(1 << 63)).unwrap();
    let regions: Vec<u32> = limited.placements.iter().map(|placement| placement.region).collect();
    assert_eq!((regions[..4].to_vec(), regions[5]), (vec![0, 1, 1, 2], 2));
}
