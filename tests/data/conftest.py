"""A folder in which not all is as it should be, for what lists it and what verifies it."""

import pytest
from PIL import Image


@pytest.fixture
def mixed(tmp_path, table):
    """Two sound images of the manifest, one cut off, one extra, one of another name, and one name twice."""
    sound, cut, twice = table["filename"][:3]
    extra = "SOB_M_DC-99-10001-40-001.png"
    for place in (sound, extra, f"a/{twice}", f"b/{twice}", cut):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.effect_noise((700, 460), 50).convert("RGB").save(tmp_path / place)
    content = (tmp_path / cut).read_bytes()
    (tmp_path / cut).write_bytes(content[: len(content) // 2])
    (tmp_path / "notes.png").write_text("this is text\n")
    (tmp_path / "readme.txt").write_text("no image, not even by name\n")
    return tmp_path, sound, cut, twice, extra
