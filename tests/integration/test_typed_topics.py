"""Topics of typed messages: both encodings on the wire, readers and writers of different versions, bad data set aside."""

from __future__ import annotations

from typing import Any

import pytest
from given import until
from pydantic import BaseModel

from bus import stored
from swarm_infrastructure import Processor, Topics
from swarm_infrastructure.errors import IncompatibleSchemaError, InvalidInputError
from swarm_infrastructure.message_bus import Delivery, SchemaRegistry
from swarm_infrastructure.message_bus.schemas import AvroCodec, JsonCodec
from swarm_infrastructure.store import Store


class Transcription(BaseModel):
    """Version 1."""

    session_id: str
    text: str


class WithSpeaker(BaseModel):
    """Version 2: a field that has a default."""

    session_id: str
    text: str
    speaker: str = "unknown"


class WithSpeakerNeeded(BaseModel):
    """What may not come: a field that old messages lack."""

    session_id: str
    text: str
    speaker: str


class Words(BaseModel):
    """How many there are."""

    session_id: str
    words: int


class WordCount(Processor):
    """Counts words."""

    source, target = "transcriptions.all", "words.output"
    poll_s = 0.05

    async def process(self, message: WithSpeaker, delivery: Delivery) -> Words:
        return Words(session_id=f"{message.session_id} of {message.speaker}", words=len(message.text.split()))


@pytest.fixture
def registry(store: Store) -> SchemaRegistry:
    return SchemaRegistry(store, "test")


async def test_a_topic_holds_both_encodings_of_both_versions_and_a_processor_reads_them_all(
    store: Store, registry: SchemaRegistry
) -> None:
    writer, reader = Topics(store, "test"), Topics(store, "test")  # as two programs have them
    old = await AvroCodec.open(registry, "transcription", Transcription)
    topic = await writer.open("transcriptions.all", partitions=1, codec=old)
    await topic.publish(Transcription(session_id="s1", text="one two"))
    topic = await writer.open(
        "transcriptions.all", codec=await JsonCodec.open(registry, "transcription", Transcription)
    )
    await topic.publish(Transcription(session_id="s2", text="one"))
    new = await AvroCodec.open(registry, "transcription", WithSpeaker)
    topic = await reader.open("transcriptions.all", codec=new)
    await topic.publish(WithSpeaker(session_id="s3", text="one two three", speaker="Ada"))
    out = await reader.open("words.output", partitions=1, codec=await AvroCodec.open(registry, "words", Words))
    processor = WordCount(reader)
    await processor.start()

    async def three() -> bool:
        return len(await out.read()) == 3

    await until(three)
    await processor.stop()

    assert [(each.session_id, each.words) for each in await stored(out)] == [
        ("s1 of unknown", 2), ("s2 of unknown", 1), ("s3 of Ada", 3)
    ]  # fmt: skip
    avro, json_, newer = await topic.read()
    assert (avro.content_type, newer.content_type) == ("application/avro", "application/avro")
    assert json_.content_type == "application/json; schema=transcription; version=1"
    assert len(avro.body) < len(json_.body)
    old_reader = await newer.decode(Transcription, old)  # and the other way round
    assert old_reader == Transcription(session_id="s3", text="one two three")


async def test_a_new_required_field_is_refused_and_the_message_says_which_and_why(registry: SchemaRegistry) -> None:
    await registry.register("transcription", Transcription)

    with pytest.raises(IncompatibleSchemaError) as refused:
        await registry.register("transcription", WithSpeakerNeeded)

    assert "/speaker" in str(refused.value)
    assert "default" in str(refused.value)
    assert [each.path for each in refused.value.problems] == ["/speaker"]


async def test_what_no_schema_wrote_becomes_a_dead_letter_that_names_the_fault_and_the_others_go_on(
    store: Store, registry: SchemaRegistry
) -> None:
    careless = await Topics(store, "test").open("transcriptions.all", partitions=1)
    await careless.publish({"session_id": "s1", "text": "no schema"})
    topics = Topics(store, "test")
    topic = await topics.open("transcriptions.all", codec=await AvroCodec.open(registry, "transcription", WithSpeaker))
    out = await topics.open("words.output", partitions=1)
    await topic.publish(WithSpeaker(session_id="s2", text="good"))
    processor = WordCount(topics)
    await processor.start()

    async def done() -> bool:
        return bool(await out.read() and await topic.dead_letters())

    await until(done)
    await processor.stop()

    [letter] = await topic.dead_letters()
    assert (letter.reason, "content type" in letter.error) == ("invalid", True)
    assert await stored(out) == [{"session_id": "s2 of unknown", "words": 1}]


async def test_what_does_not_fit_the_schema_is_not_published(store: Store, registry: SchemaRegistry) -> None:
    codec = await AvroCodec.open(registry, "transcription", Transcription)
    topic = await Topics(store, "test").open("transcriptions.all", codec=codec)

    bad: Any = {"session_id": "s1", "text": 7}
    with pytest.raises(InvalidInputError, match="/text"):
        await topic.publish(bad)

    assert await topic.read() == []
