"""A button that puts the page's link on the clipboard, in the browser, without asking the server."""

import streamlit as st

CSS = """
button { font: inherit; font-size: .93rem; color: var(--st-text-color); background: transparent;
  border: 1px solid var(--st-border-color); border-radius: var(--st-button-radius); cursor: pointer;
  padding: .3rem .75rem; min-height: 2.35rem; white-space: nowrap; }
button:hover, button:focus-visible { border-color: var(--st-primary-color); color: var(--st-primary-color); }
button:focus-visible { outline: 2.5px solid var(--st-primary-color); outline-offset: 2px; }
"""
HTML = '<button type="button">Copy link</button>'
JS = """
export default function ({ parentElement }) {
  const button = parentElement.querySelector("button");
  const say = (text) => {
    button.textContent = text;
    setTimeout(() => { button.textContent = "Copy link"; }, 1600);
  };
  button.onclick = async () => {
    const link = window.location.href;
    try { await navigator.clipboard.writeText(link); say("Copied"); }
    catch (refused) {  // no permission, or not a secure context: the old way
      const field = document.createElement("textarea");
      field.value = link; document.body.appendChild(field); field.select();
      say(document.execCommand("copy") ? "Copied" : "See the address bar"); field.remove();
    }
  };
}
"""

copy_link = st.components.v2.component("prunescope_copy_link", html=HTML, css=CSS, js=JS)
