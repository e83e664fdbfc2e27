"""Look-up in the user's documents: what is found is cited, and nothing outside is read."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reflux.agents.errors import UsageError
from reflux.agents.tools.documents import (
    MAX_CHARS,
    MAX_FILE_BYTES,
    MAX_WORDS,
    Documents,
    passages,
)
from reflux.agents.tools.protocol import REPLY_CHARS, ToolReply

FILLER = "The committee met again and talked about the weather for a long while. " * 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three documents, one of them in a folder further down."""
    folder = tmp_path / "notes"
    (folder / "old").mkdir(parents=True)
    (folder / "law.md").write_text(
        f"# Statutes\n\n{FILLER}\n\n# Bees\n\nBeekeeping is licensed by the harbour master.\n"
    )
    (folder / "old" / "ships.txt").write_text("Line one.\nThe harbour was dredged in 1911.\n")
    (folder / "menu.md").write_text("Crème brûlée and bee pollen.")
    return folder


async def test_a_passage_comes_with_its_file_and_lines(folder: Path) -> None:
    reply = await Documents(folder).answer("When was the harbour dredged?")
    assert reply.ok
    assert reply.text.startswith(
        "[old/ships.txt:1-2]\nLine one.\nThe harbour was dredged in 1911.\n\n[law.md:5-7]\n# Bees"
    )


async def test_words_match_by_stem_and_without_accents_and_rare_ones_weigh_more(
    folder: Path,
) -> None:
    documents = Documents(folder)
    assert [each.source for each in documents.find("licensing HARBOURS")] == [
        "law.md:5-7",
        "old/ships.txt:1-2",
    ]
    assert [each.source for each in documents.find("creme brulee")] == ["menu.md:1-1"]


async def test_a_query_without_a_match_is_answered_so(folder: Path) -> None:
    documents = Documents(folder)
    assert await documents.answer("What is the zeppelin?") == ToolReply(
        "no passage of the documents holds any of these words"
    )
    assert documents.find("?! --") == []
    assert documents.find("the") != []  # A common word counts where there is no other.


@pytest.mark.parametrize(
    "query",
    [
        '"',
        '"harbour',
        "harbour AND",
        "NOT harbour",
        "harbour NEAR(x, 3)",
        "text:harbour",
        "harbour*",
        "^harbour",
        "-harbour",
        "harbour) OR (1",
        "harbour'; DROP TABLE passages; --",
        "harbour\0harbour",
        "\ud800 harbour",
        "harbour " * 2_000,
    ],
)
async def test_the_syntax_of_the_index_means_nothing_in_a_query(query: str, folder: Path) -> None:
    documents = Documents(folder)
    reply = await documents.call({"query": query})
    assert reply.ok
    assert ("harbour" in reply.text) == ("harbour" in query)
    assert documents.find("harbour") != []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_looked_up(query: str, folder: Path, documents: Documents) -> None:
    documents.find(query)


@pytest.fixture
def documents(folder: Path) -> Documents:
    """The index of `folder`."""
    return Documents(folder)


async def test_what_changed_is_read_again(folder: Path) -> None:
    documents = Documents(folder)
    (folder / "new.txt").write_text("A zeppelin landed.")
    assert [each.source for each in documents.find("zeppelin")] == ["new.txt:1-1"]
    (folder / "new.txt").write_text("\n\nAn airship, they said, was seen.")
    assert documents.find("zeppelin") == []
    assert [each.source for each in documents.find("airship")] == ["new.txt:3-3"]
    (folder / "new.txt").unlink()
    assert documents.find("airship") == []
    assert documents.refresh() == 3


async def test_a_file_that_did_not_change_is_not_read_again(folder: Path) -> None:
    documents = Documents(folder)
    found = (folder / "menu.md").stat()
    (folder / "menu.md").write_text("X" * found.st_size)
    os.utime(folder / "menu.md", ns=(found.st_atime_ns, found.st_mtime_ns))
    assert documents.find("pollen") != []


async def test_nothing_outside_the_folder_is_read_through_links(
    folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "private"
    outside.mkdir()
    (outside / "diary.txt").write_text("zeppelin secrets")
    (folder / "diary.txt").symlink_to(outside / "diary.txt")
    (folder / "more").symlink_to(outside)
    (folder / "broken.md").symlink_to(outside / "nowhere.md")
    documents = Documents(folder)
    assert documents.find("zeppelin") == []
    assert "link" in documents.skipped["diary.txt"]
    assert "link" in documents.skipped["broken.md"]


@pytest.mark.timeout(60)
async def test_what_is_no_document_is_skipped_with_the_reason(folder: Path) -> None:
    (folder / "scan.pdf").write_bytes(b"%PDF zeppelin")
    (folder / "latin.txt").write_bytes("Zürich zeppelin".encode("latin-1"))
    (folder / ".hidden.txt").write_text("zeppelin")
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(folder / "pipe.txt")
    documents = Documents(folder)
    assert documents.find("zeppelin") == []
    assert documents.skipped == {
        "scan.pdf": "neither .txt nor .md",
        "latin.txt": "not UTF-8",
        "huge.txt": "larger than 10 MiB",
        "pipe.txt": "no file",
    }


async def test_a_folder_that_holds_no_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        Documents(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no files"):
        Documents(tmp_path)
    (tmp_path / "scan.pdf").write_bytes(b"%PDF")
    with pytest.raises(UsageError, match=r"scan\.pdf: neither"):
        Documents(tmp_path)


async def test_a_folder_with_too_many_documents_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reflux.agents.tools.documents.MAX_FILES", 2)
    with pytest.raises(UsageError, match="more than 2 documents"):
        Documents(folder)


def test_a_folder_that_vanishes_is_empty(folder: Path, tmp_path: Path) -> None:
    documents = Documents(folder)
    folder.rename(tmp_path / "elsewhere")
    assert documents.find("harbour") == []


async def test_the_longest_reply_is_whole(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("zeppelin" * 5_000 + " " + "zeppelin " * 5_000)
    reply = await Documents(tmp_path).answer("zeppelin")
    assert reply.text.count("[long.txt:1-1]") == 5
    assert len(reply.text) <= REPLY_CHARS
    assert "[cut" not in reply.text


lines = st.lists(
    st.text("ab# ", max_size=30)
    | st.integers(0, 400).map(lambda count: "word " * count)
    | st.integers(0, 4000).map(lambda count: "x" * count),
    max_size=20,
)


@given(lines)
def test_passages_hold_every_word_once_in_order_and_tell_its_line(text: list[str]) -> None:
    found = list(passages("\n".join(text)))
    joined = "".join("".join(each.text.split()) for each in found)
    assert joined == "".join("".join(line.split()) for line in text)
    for each in found:
        assert 1 <= each.first <= each.last <= len(text)
        assert len(each.text.split()) <= MAX_WORDS
        assert len(each.text) <= MAX_CHARS
        first = "".join(each.text.split("\n")[0].split())
        assert first in "".join(text[each.first - 1].split())


def test_prose_is_cut_at_paragraphs_into_passages_of_100_to_200_words() -> None:
    text = "\n\n".join([FILLER.strip()[:400]] * 40)
    counts = [len(each.text.split()) for each in passages(text)]
    assert all(100 <= count <= 200 for count in counts[:-1])
    assert all(each.text.startswith("The committee") for each in passages(text))


def test_a_name_that_is_not_unicode_is_skipped_and_told(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("A giraffe.")
    documents = Documents(folder)
    assert documents.skipped == {"caf\ufffd.txt": "its name is not UTF-8: rename it"}
    assert documents.find("giraffe") == []
    assert documents.find("harbour") != []
