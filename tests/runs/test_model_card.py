"""A model card says what is known, and nothing of this machine; the hub can read its metadata."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard

from retroflow.errors import UsageError
from retroflow.runs.model_card import HUB_LICENCES, CardFacts, write_card
from retroflow.runs.origin import Origin
from retroflow.store.sealed_json import render_sealed

REPORT = {
    "training": {"steps": 6},
    "validation": {mode: {"loss": loss, "bits_per_byte": 1.0} for mode, loss in (("on", 2.5), ("off", 2.75))},
    "overlap_statement": "Overlap: 12.0% of 9 chunks.",
    "findings": ["Overlap: 12.0% of 9 chunks.", "A sample was measured."],
}
ON = {"name": "on", "gain": 0.2, "gain_interval": [0.1, 0.3], "sequences": 5}


@pytest.fixture
def card(tmp_path):
    """Write a card of a run in `tmp_path`, whose values and report are changed."""

    def write(report=None, facts=None, corpus=None, fingerprints=None, say=pytest.fail, **model):
        values = {
            "model": {"name": "retrofit"} | model,
            "corpus": corpus or {"name": "jsonl", "path": str(tmp_path / "text.jsonl")},
            "embedder": {"name": "lexical"},
            "retriever": {"name": "exact"},
        }
        if report is not None:
            (tmp_path / "report.json").write_bytes(render_sealed(report, what="a report").encode())
        network = torch.nn.Linear(2, 3)
        network.config = SimpleNamespace(chunk_length=8)
        trained = SimpleNamespace(run=SimpleNamespace(folder=tmp_path, values=values), model=network, step=6)
        origin = Origin(
            recipe="tiny", step=6, num_neighbours=2, retrieval_step=8, sequence_length=16, tokenizer="t" * 64,
            fingerprints=fingerprints or {"chunks": "c1", "index": "i1"}, version="0",
        )  # fmt: skip
        text = write_card(trained, origin, say, facts)
        assert str(tmp_path) not in text
        metadata = ModelCard(text).data.to_dict()  # raises where the YAML or the model index is none
        assert metadata.get("license", "other") in HUB_LICENCES
        assert ("base_model" in metadata) == ("base_model_relation" in metadata)
        assert metadata["library_name"] == "retroflow" and metadata["pipeline_tag"] == "text-generation"
        return metadata, text

    return write


def test_base_database_and_licences(card, tmp_path):
    base = tmp_path / "my base"
    base.mkdir()
    metadata, text = card(base=str(base), corpus={"name": "database", "path": str(tmp_path / "library@7")})
    assert "base_model" not in metadata  # a folder has no name on the hub
    assert "license" not in metadata and "| licence of the base | not known" in text
    assert "| database | fingerprint `i1`; of the database `library`, version 7 |" in text
    assert "| base | `my-base`; its weights are unchanged |" in text
    (base / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    metadata, text = card(base=str(base), unfreeze=True)
    assert metadata["license"] == "mit" and "| licence of the base | mit |" in text
    metadata, text = card(base=str(base), unfreeze=True, facts=CardFacts(base_model="org/theirs"))
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("org/theirs", "finetune")
    assert (
        "| base | `org/theirs`; all of its weights were trained" in text
        and "| licence of the database | not known" in text
    )
    metadata, text = card(base="org/name", facts=CardFacts("Apache-2.0", database_licence="cc-by-4.0"))
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("org/name", "adapter")
    assert metadata["license"] == "apache-2.0" and "license_name" not in metadata
    assert "| licence of the database | cc-by-4.0 |" in text
    metadata, text = card(fingerprints={"chunks": "c1"})
    assert "base_model" not in metadata and "| database | none: trained without retrieval |" in text


def test_a_licence_is_one_that_the_hub_knows_or_other_with_its_name(card, tmp_path):
    said = []
    metadata, text = card(facts=CardFacts("My Licence 1.0"), say=said.append)
    assert (metadata["license"], metadata["license_name"]) == ("other", "my-licence-1.0")
    assert "| licence of these weights | My Licence 1.0 |" in text
    assert said == [
        'licence "My Licence 1.0": not one that the hub knows, so the README says "other" with this name. '
        "Give a link to its text, too."
    ]
    metadata, _ = card(facts=CardFacts("apache2.0", "https://example.org/text"), say=said.append)
    assert metadata["license_link"] == "https://example.org/text"
    assert said[1].endswith('with this name. Did you mean "apache-2.0"?')
    with pytest.raises(UsageError, match='licence: "other" given; give the name of the licence itself'):
        card(facts=CardFacts("other"))
    with pytest.raises(UsageError, match='base_model: "org/base" given for a model that has no base; leave it out'):
        card(facts=CardFacts(base_model="org/base"))

    snapshot = tmp_path / "models--org--its-name" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    stated = "license: other\nlicense_name: theirs-2\nlicense_link: LICENSE"
    (snapshot / "README.md").write_text(f"---\n{stated}\n---\n# A base\n")
    metadata, text = card(base=str(snapshot))
    assert metadata["base_model"] == "org/its-name" and metadata["license_name"] == "theirs-2"
    assert metadata["license_link"] == "https://huggingface.co/org/its-name/blob/main/LICENSE"
    assert "| licence of the base | theirs-2 |" in text
    (snapshot / "README.md").write_text("---\nlicense: [mit, apache-2.0]\n---\n")
    assert card(base=str(snapshot))[0]["license_name"] == "mit-and-apache-2.0"


def test_losses_stand_beside_their_overlap_and_interval(card, tmp_path):
    assert "nats/token" not in card()[1]
    assert "nats/token" not in card(REPORT | {"training": {"steps": 5}})[1]  # of another checkpoint
    metadata, text = card(REPORT)
    results = ModelCard(text).data.eval_results
    assert [(one.metric_name, one.metric_value) for one in results] == [
        ("nats per token, retrieval on", 2.5), ("bits per byte, retrieval on", 1.0),
        ("nats per token, retrieval off", 2.75), ("bits per byte, retrieval off", 1.0),
    ]  # fmt: skip
    assert metadata["model-index"][0]["name"] == "tiny"
    assert "| on | 2.5000 | 1.0000 |" in text and "| off | 2.7500 |" in text
    assert "the loss is 0.2500 nats per token lower; no interval was measured (`retroflow compare` does)." in text
    assert text.count("Overlap: 12.0% of 9 chunks.") == 1 and "- A sample was measured." in text

    hurts = {mode: {"loss": loss, "bits_per_byte": 1.0} for mode, loss in (("on", 2.75), ("off", 2.5))}
    assert "the loss is 0.2500 nats per token higher;" in card(REPORT | {"validation": hurts})[1]

    compared = {"model": {"checkpoint": "step-00000006.ckpt"}, "rows": [ON], "text": {"documents": 4}}
    (tmp_path / "comparisons" / "a").mkdir(parents=True)
    (tmp_path / "comparisons" / "a" / "comparison.json").write_text(json.dumps(compared))
    assert "95 % interval of a gain of 0.2000 on 5 sequences, 4 documents: 0.1000 to 0.3000." in card(REPORT)[1]
    opponents = {"sequences": 3, "of": 9, "documents": 2, "intervals": {"on_minus_off": [-0.4, -0.1]}}
    text = card(REPORT | {"opponents": opponents})[1]
    assert "95 % interval of the gain on 3 of 9 sequences, 2 documents: 0.1000 to 0.4000." in text
    metadata, text = card(REPORT | {"overlap_statement": None, "findings": []})
    assert "model-index" not in metadata
    assert "was not measured, so no gain is stated" in text and "lower" not in text
