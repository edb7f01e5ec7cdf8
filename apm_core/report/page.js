for (const slider of document.querySelectorAll("input[data-rounds]")) {
  const rounds = slider.dataset.rounds.split(" ");
  const figure = slider.closest("figure");
  const show = () => {
    slider.nextElementSibling.value = rounds[slider.value];
    for (const block of figure.querySelectorAll(".frames")) {
      if (block.children.length < rounds.length) continue;
      [...block.children].forEach((image, at) => { image.hidden = at != slider.value; });
    }
  };
  slider.addEventListener("input", show);
  show(); // a browser may have kept its place
}
