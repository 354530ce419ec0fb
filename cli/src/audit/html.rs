pub fn page(_: &super::Audited<'_>) -> String {
    String::new()
}
