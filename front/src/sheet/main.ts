import { mount } from "svelte";
import "../shared/base.css";
import { readPage } from "../shared/page-data";
import Sheet from "./Sheet.svelte";
import type { Page } from "./hits";

mount(Sheet, { target: document.getElementById("app")!, props: { page: readPage<Page>() } });
