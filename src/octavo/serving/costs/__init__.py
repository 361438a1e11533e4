"""What serving costs: usage metered per hour, model and caller, and money shared out by it.

from octavo.serving.costs import CostQuestion, UsageTable, cost_report
from octavo.settings import load_settings
from octavo.storage import Database

table = UsageTable(Database(load_settings("workspace").database_url))
report = cost_report(table, CostQuestion(since=monday, until=now, price=0.192))
print(report.bill, report.idle, [(line.tenant, line.model, line.money) for line in report.lines])
"""

from octavo.serving.costs.question import CostQuestion, parse_question
from octavo.serving.costs.report import CostLine, CostReport, cost_report
from octavo.serving.costs.table import UsageTable
from octavo.serving.costs.usage import Capacity, Usage

__all__ = ["Capacity", "CostLine", "CostQuestion", "CostReport", "Usage", "UsageTable", "cost_report", "parse_question"]
