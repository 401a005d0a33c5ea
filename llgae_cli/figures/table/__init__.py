"""Pictures of tables: `contents` turns arrays into charts, `drawing` draws a chart with matplotlib.

A chart is plain values; the report's page writes the same charts as HTML and SVG.
"""

from llgae_cli.figures.table.charts import Bars, Chart, Matrix, Points
from llgae_cli.figures.table.contents import CHARTS, TableView
from llgae_cli.figures.table.drawing import draw_chart

__all__ = ["CHARTS", "Bars", "Chart", "Matrix", "Points", "TableView", "draw_chart"]
