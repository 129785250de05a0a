"""What the tests of pictures share."""


def history(
    stages=("layer 1",), epochs=3, terms=("reconstruction",), validation=True
) -> list[dict[str, object]]:
    parts = ["train", "validation"] if validation else ["train"]
    names = [f"{part}_{term}" for part in parts for term in ("total", *terms)]
    return [
        {"stage": stage, "epoch": epoch} | {name: 1.0 / epoch + n for n, name in enumerate(names)}
        for stage in stages
        for epoch in range(1, epochs + 1)
    ]
