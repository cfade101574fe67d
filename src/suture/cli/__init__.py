"""The commands. One file per group of verbs; nothing heavy is imported until it must."""
