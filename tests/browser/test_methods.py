"""The Methods page in a browser: what is carried out can be stopped, left, found again and taken along."""

import json
import re
from urllib.parse import quote

import torch
from screen import cards, settled

from core.weights import load_dataset, load_model, read_model

SMALL = "/methods?m=mlp--digits&steps="


def link(server, *steps: str, path: str = SMALL) -> str:
    return server.address + path + quote(json.dumps(steps))


def test_the_network_that_is_exported_is_the_one_that_was_measured(server, visit, tmp_path):
    page = visit(link(server, 'prune-weights{"sparsity":0.9}'))
    settled(page)
    said = float(re.search(r"([\d.]+) %", cards(page)["Accuracy"])[1])
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Network (safetensors)").click()
    file = tmp_path / "compressed.safetensors"
    waiting.value.save_as(file)
    network, test = read_model(file).module, load_dataset("digits").test
    right = (network(test.images).argmax(1) == test.labels).float().mean().item()
    assert abs(100 * right - said) < 0.06
    assert not torch.equal(network.linear.weight, load_model("mlp", "digits").module.linear.weight)


def test_what_a_reader_does_meanwhile_stops_a_recipe_without_training(server, visit):
    page = visit(link(server, "differential-evolution", path="/methods?steps="))
    page.get_by_text("Carrying out").first.wait_for()
    page.get_by_role("spinbutton", name="Seed").press("ArrowUp")
    page.get_by_text("then press Carry out").wait_for()
    settled(page)
    assert page.locator(".ps-card").count() == 0


def test_a_run_goes_on_without_its_page_and_a_cancel_keeps_what_there_is(server, visit):
    address = link(server, 'fine-tuning{"epochs":500,"images":256}', path="/methods?steps=")
    page = visit(address)
    page.get_by_role("button", name="Carry out").click()
    page.get_by_role("button", name="Cancel").wait_for()
    page.get_by_text(re.compile(r"Epoch \d+ of 500")).first.wait_for()
    page.close()
    page = visit(address)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled. What there was by then is shown").wait_for()
    settled(page)
    assert re.search(r"n = 1,077", cards(page)["Accuracy"])
