"""Naive against matched, in a browser: what is said is what those networks do."""

from screen import settled

from core.agreement import agreement
from core.attribution import ATTRIBUTIONS, explain
from core.drift import shipped, shipped_network
from core.evaluation import evaluate
from core.weights import load_dataset, load_model

HERE = "Rank correlation, this picture and method"


def rows(page) -> dict[str, list[str]]:
    """First cell -> the other cells, of the table below the three maps."""
    found = page.locator("table.ps-table", has_text="naive").locator("tr").all_inner_texts()
    return {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in (row.split("\t") for row in found)}


def test_another_sparsity_shows_other_networks_and_their_numbers(server, visit):
    page = visit(f"{server.address}/attributions?img=4&attr=input-x-gradient")
    settled(page)
    data = load_dataset("cluttered-digits")
    original, image = load_model("resnet20", data.name).module, data.test.take(slice(4, 5)).images
    records, method = shipped(), ATTRIBUTIONS["input-x-gradient"]()
    target = original(image).argmax(1)
    for words, sparsity in (("97 %", 0.97), ("50 %", 0.5)):
        page.get_by_role("radio", name=words).or_(page.get_by_role("button", name=words)).first.click()
        settled(page)
        told = rows(page)
        for place, way in enumerate(("naive", "matched"), start=1):
            row = records[(records.training == way) & (records.sparsity == sparsity)].iloc[0]
            assert told["Accuracy"][place] == f"{row.accuracy:.1%}"
            network = shipped_network(way, sparsity).module
            maps = [explain(each, method, image, target) for each in (original, network)]
            assert told[HERE][place] == f"{agreement(*maps).spearman.item():.3f}"
    network = shipped_network("matched", 0.97).module
    row = records[(records.training == "matched") & (records.sparsity == 0.97)].iloc[0]
    assert abs(evaluate(network, data.test).accuracy - row.accuracy) < 1e-5
    assert page.complaints == []


def test_start_leads_to_both_trainings_of_the_picture_that_surprises(server, visit):
    page = visit(server.address)
    page.get_by_text("Compare both trainings").wait_for()
    settled(page)
    records = shipped()
    for way in ("naive", "matched"):
        row = records[(records.training == way) & (records.sparsity == 0.97)].iloc[0]
        assert page.get_by_text(f"{100 * row.accuracy:.1f} %").count()
    page.get_by_text("Compare both trainings").click()
    page.get_by_text("What does training bring back?").wait_for()
    settled(page)
    assert len(rows(page)["Accuracy"]) == 3


def test_another_network_is_offered_a_training_of_its_own(server, visit):
    page = visit(f"{server.address}/attributions?m=small-cnn--cluttered-digits")
    settled(page)
    page.get_by_role("link", name="Train this network").click()
    page.get_by_text("2 · Fine tuning").wait_for()
    assert "attribution-matching" in page.url
