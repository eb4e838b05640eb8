import { mount } from "svelte";
import "../shared/base.css";
import { readPage } from "../shared/page-data";
import Map from "./Map.svelte";
import { type Page, Points } from "./points";

mount(Map, { target: document.getElementById("app")!, props: { points: new Points(readPage<Page>()) } });
