"""Damage to files, at random."""


def damage(rng, folder):
    """Damages one to three files: cuts them, flips a bit, overwrites a block, or removes them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in rng.sample(files, rng.choice([1, 1, 1, 2, 3])):
        data = bytearray(path.read_bytes())
        at = rng.randrange(len(data)) if data else 0
        how = rng.choice(["flip", "flip", "flip", "cut", "cut", "zeros", "remove"])
        if how == "remove":
            path.unlink()
            continue
        if how == "flip" and data:
            data[at] ^= 1 << rng.randrange(8)
        elif how == "zeros":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        else:
            del data[at:]
        path.write_bytes(data)
