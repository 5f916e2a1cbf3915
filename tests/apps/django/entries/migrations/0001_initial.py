from django.db import migrations, models


def first(apps, schema_editor):
    apps.get_model("entries", "Entry").objects.create(title="made by a migration")


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel("Entry", [("id", models.AutoField(primary_key=True)), ("title", models.CharField(max_length=100))]),
        migrations.RunPython(first),
    ]
