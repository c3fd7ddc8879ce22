//! A save replaces regular files and makes new ones. Whatever else its paths lead to stays as it is.
//!
//! Tests run as root and as another user where root starts them, else as the user who starts them. A test that needs a right or a file system that is not
//! there is ignored, and counted as such.

#[path = "save_targets/drafts.rs"]
mod drafts;

#[path = "save_targets/paths.rs"]
mod paths;

#[path = "save_targets/permissions.rs"]
mod permissions;

#[path = "save_targets/scene.rs"]
mod scene;
mod support;

use libtest_mimic::{Arguments, Trial};
use scene::{as_nobody, has_attributes, has_lists, has_namespaces, has_nodes, is_root};

fn main() {
    let trial = |name: &str, missing: bool, test: fn()| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(missing)
    };
    let everyone = |name: &str, test: fn()| {
        let as_other = move || {
            if is_root() {
                as_nobody(&[], test);
            } else {
                test();
            }
            Ok(())
        };
        [
            trial(&format!("{name}::as_root"), !is_root(), test),
            Trial::test(format!("{name}::as_other"), as_other),
        ]
    };
    let (root, nodes, lists, namespaces) = (is_root(), has_nodes(), has_lists(), has_namespaces());
    let attributes = has_attributes();
    let trials = [
        everyone("what_is_not_a_regular_file_stays_as_it_is", paths::other_files_stay),
        everyone("links_to_what_is_not_a_regular_file_are_refused", paths::links_to_other_files_are_refused),
        everyone("links_are_followed_and_stay", paths::links_are_followed),
        everyone("links_that_lead_nowhere_are_refused", paths::links_that_lead_nowhere_are_refused),
        everyone("of_a_file_with_two_names_only_the_named_one_changes", paths::only_the_named_link_changes),
        everyone("paths_that_name_no_file_are_refused", paths::paths_without_a_file_are_refused),
        everyone("a_replaced_file_keeps_its_mode", permissions::replaced_files_keep_their_mode),
        everyone("a_new_file_obeys_the_mask", permissions::new_files_obey_the_mask),
        everyone(
            "no_one_else_reads_a_private_file_before_it_is_named",
            permissions::private_files_stay_private,
        ),
        everyone("all_paths_are_looked_at_before_anything_is_written", drafts::all_paths_are_looked_at_first),
        everyone("what_takes_a_name_before_the_commit_stays", drafts::what_takes_a_name_stays),
        everyone(
            "a_file_that_is_saved_twice_at_once_is_the_later_one",
            drafts::a_regular_file_may_take_the_name,
        ),
        everyone("saves_to_one_path_at_the_same_time_are_no_error", drafts::saves_at_the_same_time_succeed),
        everyone("folders_are_found_through_links_and_descriptors", paths::folders_are_found),
        everyone("two_paths_to_one_file_are_refused", paths::two_paths_to_one_file_are_refused),
        everyone("a_thousand_files_need_few_descriptors", drafts::many_files_need_few_descriptors),
        everyone(
            "a_link_to_a_deleted_file_leads_to_no_other",
            paths::a_link_to_a_deleted_file_leads_to_no_other,
        ),
        everyone("a_draft_stays_where_it_began", drafts::drafts_do_not_follow_the_working_directory),
    ];
    let special = [
        trial(
            "a_set_that_fails_leaves_the_files_that_were_there",
            !attributes,
            drafts::a_failed_set_leaves_the_old_files,
        ),
        trial(
            "a_folder_that_cannot_be_written_back_loses_nothing",
            !root,
            drafts::an_unreadable_folder_loses_nothing,
        ),
        trial(
            "files_that_a_sticky_folder_keeps_are_refused",
            !root,
            paths::files_kept_by_a_sticky_folder_are_refused,
        ),
        trial("immutable_files_are_refused", !attributes, paths::files_with_attributes_are_refused),
        trial("device_nodes_stay_as_they_are", !nodes, paths::device_nodes_stay),
        trial("a_replaced_file_keeps_its_owner", !root, permissions::replaced_files_keep_their_owner),
        trial("a_replaced_file_keeps_the_group_of_its_user", !root, permissions::replaced_files_keep_a_group),
        trial("a_file_that_is_read_only_is_not_replaced", !root, permissions::read_only_files_are_refused),
        trial("folders_and_links_of_others_are_refused", !root, paths::folders_of_others_are_refused),
        trial("a_file_that_is_a_mount_point_stays", !namespaces, paths::mount_points_stay),
        trial(
            "a_file_system_that_is_read_only_is_refused",
            !namespaces,
            paths::read_only_systems_are_refused,
        ),
        trial("an_access_control_list_is_kept", !lists, permissions::lists_are_kept),
        trial("a_replaced_file_does_not_inherit_a_list", !lists, permissions::lists_are_not_inherited),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials.into_iter().flatten().chain(special).collect()).exit();
}
