"use strict";
// Pictures open in a dialog that is as wide as they need; the drawing itself moves there and back.
{
  document.documentElement.classList.add("scripted");
  const dialog = document.getElementById("zoom");
  const place = dialog.querySelector("div");
  let home = null;
  const open = (picture) => {
    home = picture;
    place.append(picture.querySelector(".wide"));
    dialog.showModal();
  };
  dialog.addEventListener("close", () => {
    home.prepend(place.firstElementChild);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  for (const figure of document.querySelectorAll("figure:has(.picture)")) {
    const picture = figure.querySelector(".picture");
    picture.addEventListener("click", () => open(picture));
    figure.querySelector(".enlarge").addEventListener("click", () => open(picture));
  }
}
