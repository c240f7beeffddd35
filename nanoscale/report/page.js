// Tables sort by a click on a column's head; without scripts they stand as they are.
for (const table of document.querySelectorAll("table")) new Tablesort(table);
