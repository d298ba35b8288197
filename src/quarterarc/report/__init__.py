"""Reports: HTML pages with embedded pictures and charts."""

from .charts import Series, line_chart, responsive_chart, wide_chart
from .page import data_url, write_page

__all__ = ["Series", "data_url", "line_chart", "responsive_chart", "wide_chart", "write_page"]
