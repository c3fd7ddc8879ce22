//! `docs/settings.md` lists the settings that there are.

use std::collections::BTreeSet;

use tensorhold::settings;

#[test]
fn the_documentation_lists_every_setting_and_no_other() {
    let page = include_str!("../docs/settings.md");
    let listed: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| row.split('`').next())
        .collect();
    assert_eq!(listed, settings::ALL.into_iter().collect());
}
