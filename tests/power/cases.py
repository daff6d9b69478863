"""The cases of tests/power/run by name, each a function of a `Bench`."""
import hostile
import limits
import trees
import volumes

# Left out of the short form unless named: tests/client crash is its like.
LONG = {"tree-on-file"}
CASES = {
    "tree-on-forgetful-disk": trees.on_forgetful_disk,
    "tree-on-file": trees.on_file,
    "tree-on-liar": trees.on_liar,
    "volumes": volumes.volumes,
    "full-disk": limits.full_disk,
    "little-memory": limits.little_memory,
    "full-journal": limits.full_journal,
    "hostile": hostile.hostile,
}
